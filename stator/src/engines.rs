//! What the workers of this process compute with.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::{
    Compute, CpuRunner, CudaModel, CudaOptions, CudaRunner, EngineConfig, Int8Cache, KernelPath,
    Libraries, LoadError, MockRunner, MockTimes, MockVocabulary, Model, Runner,
};

use indicatif::{ProgressBar, ProgressStyle};
use protocol::v1::ModelCard;
use worker::{StartError, load_card};

use crate::cli::{Device, EngineArgs, EngineKind, Numerics, Quantization};
use crate::error::CommandError;
use crate::model_directory::ModelDirectory;
use crate::weights;

/// Memory of each worker's KV pool where the arguments do not say. It is reserved, and becomes
/// real as blocks are first used.
const KV_POOL_BYTES: usize = 1 << 30;

/// Blocks of a pool on a GPU, where the arguments do not say, at least: fewer serve nobody.
const KV_BLOCKS_MIN: usize = 16;

/// As many rows as a launch has room for, less what steps are rounded up by.
const CUDA_STEP_TOKENS_MAX: u32 = 65_472;

/// Blocks of such a pool at most: those of a mock are tiny.
const KV_BLOCKS_MAX: usize = 1 << 16;

/// Sequences that wait in one worker; more are refused with 503.
const WAITING_SEQUENCES_MAX: usize = 1024;

/// A model and what computes it, shared by the workers of this process.
pub enum Engines {
    /// The CPU's kernels.
    Cpu {
        /// The model.
        model: Arc<Model>,
        /// The threads.
        compute: Arc<Compute>,
    },
    /// A GPU's kernels.
    Cuda(Arc<CudaModel>),
    /// candle, to compare with.
    #[cfg(feature = "candle")]
    Candle(Arc<engine::CandleModel>),
    /// No model.
    Mock {
        /// How long steps take.
        times: MockTimes,
        /// What it says.
        vocabulary: MockVocabulary,
    },
}

/// Checks what clap cannot. Errors: a sentence.
pub fn check(arguments: &EngineArgs) -> Result<(), String> {
    let EngineArgs { mock_prefill_us_per_token, mock_step_us, mock_step_us_per_seq, .. } =
        arguments;
    let times = [mock_prefill_us_per_token, mock_step_us, mock_step_us_per_seq];
    if arguments.engine == EngineKind::Cpu && times.iter().any(|time| time.is_some()) {
        return Err("the --mock-… times are for --engine mock; add it, or leave them out".into());
    }
    if arguments.engine == EngineKind::Mock && arguments.quantization.is_some() {
        return Err("a mock has no weights; leave --quantization out".into());
    }
    if arguments.engine == EngineKind::Mock && arguments.device != Device::Cpu {
        return Err("a mock computes nothing; leave --device out".into());
    }
    if arguments.device == Device::Cpu && arguments.numerics == Numerics::Fast {
        return Err("on the CPU arithmetic never depends on the batch; leave --numerics out".into());
    }
    let is_candle = matches!(arguments.device, Device::CandleCpu | Device::CandleCuda { .. });
    if is_candle && arguments.quantization.is_some() {
        return Err("candle has no weights in 8 bits; leave --quantization or --device out".into());
    }
    let is_cuda = matches!(arguments.device, Device::Cuda { .. });
    if arguments.share_weights && !is_cuda {
        return Err("weights are shared on GPUs (the CPU's workers share their files anyway); \
                    leave --share-weights out, or add --device cuda"
            .into());
    }
    if is_cuda && !arguments.block_size.is_multiple_of(4) {
        return Err(
            "the GPU's kernels need blocks of a multiple of 4 tokens; use --block-size 16".into()
        );
    }
    if is_cuda && arguments.max_num_batched_tokens > CUDA_STEP_TOKENS_MAX {
        return Err(format!(
            "a GPU computes at most {CUDA_STEP_TOKENS_MAX} tokens in one step; use a smaller \
             --max-num-batched-tokens"
        ));
    }
    if arguments.quantization == Some(Quantization::Fp8) && !is_cuda {
        return Err("fp8 is for GPUs; add --device cuda, or use --quantization int8".into());
    }
    arguments.device.check()
}

/// Loads a model and what gateways need of it, and checks that they can use it.
pub async fn load(
    model: ModelDirectory,
    arguments: EngineArgs,
) -> Result<(Engines, ModelCard), CommandError> {
    let loaded = tokio::task::spawn_blocking(move || {
        let ModelDirectory { path, name } = model;
        let engines = Engines::load(&path, &arguments)?;
        let card = load_card(&path, &name, engines.runner().facts())?;
        gateway::check_card(&card)
            .map_err(|source| CommandError::Card { path: path.display().to_string(), source })?;
        Ok((engines, card))
    });
    loaded.await.map_err(|error| CommandError::Component(error.to_string()))?
}

impl Engines {
    /// Loads a model directory or a GGUF file. Errors: a file is missing or unusable, or threads are refused.
    pub fn load(path: &Path, arguments: &EngineArgs) -> Result<Self, CommandError> {
        match (arguments.engine, arguments.device) {
            (EngineKind::Mock, _) => Ok(Self::load_mock(path, arguments)?),
            (EngineKind::Cpu, Device::Cuda { ordinal }) => {
                Self::load_cuda(path, ordinal, arguments)
            }
            #[cfg(feature = "candle")]
            (EngineKind::Cpu, device @ (Device::CandleCuda { .. } | Device::CandleCpu)) => {
                Self::load_candle(path, device, arguments.numerics)
            }
            // `check` refused what this build lacks.
            (EngineKind::Cpu, _) => Self::load_cpu(path, arguments),
        }
    }

    #[cfg(feature = "candle")]
    fn load_candle(path: &Path, device: Device, numerics: Numerics) -> Result<Self, CommandError> {
        let device = match device {
            Device::CandleCuda { ordinal } => engine::CandleDevice::Cuda { ordinal },
            _ => engine::CandleDevice::Cpu,
        };
        let model = engine::CandleModel::load(path, device, numerics.into())?;
        Ok(Self::Candle(Arc::new(model)))
    }

    fn load_cuda(path: &Path, ordinal: u32, arguments: &EngineArgs) -> Result<Self, CommandError> {
        let options = CudaOptions {
            ordinal,
            numerics: arguments.numerics.into(),
            weights: weights::format(arguments.quantization),
            kernel_cache: kernel_cache(arguments),
            libraries: Libraries::default(),
            keeper: match arguments.share_weights {
                true => Some(weights::launch(path, ordinal, arguments)?),
                false => None,
            },
        };
        let model = Self::load_files(path, arguments.quantization, arguments.cache_dir.clone())?;
        Ok(Self::Cuda(Arc::new(CudaModel::of(&model, &options)?)))
    }

    /// A model whose weights are brought to a GPU. Errors: a file is missing or unusable.
    pub fn load_files(
        path: &Path,
        quantization: Option<Quantization>,
        cache_dir: Option<PathBuf>,
    ) -> Result<Model, LoadError> {
        match quantization {
            Some(Quantization::Int8) => Self::load_in_int8(path, KernelPath::Portable, cache_dir),
            Some(Quantization::Fp8) | None => Model::load(path, KernelPath::Portable),
        }
    }

    fn load_cpu(path: &Path, arguments: &EngineArgs) -> Result<Self, CommandError> {
        let kernel_path = KernelPath::detect();
        let model = Arc::new(match arguments.quantization {
            // `check` refused others.
            None | Some(Quantization::Fp8) => Model::load(path, kernel_path)?,
            Some(Quantization::Int8) => {
                Self::load_in_int8(path, kernel_path, arguments.cache_dir.clone())?
            }
        });
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = arguments.threads.map_or_else(available, |threads| threads as usize);
        let compute = Compute::new(threads, kernel_path).map_err(io::Error::other)?;
        Ok(Self::Cpu { model, compute: Arc::new(compute) })
    }

    /// Shows on a terminal how far the weights are, where they have yet to be made. Errors: a file is
    /// missing or unusable, or cannot be written.
    fn load_in_int8(
        path: &Path,
        kernel_path: KernelPath,
        cache_dir: Option<PathBuf>,
    ) -> Result<Model, LoadError> {
        let style =
            ProgressStyle::with_template("8-bit weights [{bar:24}] {bytes} of {total_bytes}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::no_length().with_style(style);
        let progress = |written, total| {
            bar.set_length(total);
            bar.set_position(written);
        };
        let cache = Int8Cache { directory: cache_dir, progress: &progress };
        let loaded = Model::load_in_int8(path, kernel_path, &cache);
        bar.finish_and_clear();
        loaded
    }

    fn load_mock(path: &Path, arguments: &EngineArgs) -> Result<Self, LoadError> {
        let times = MockTimes {
            prefill_us_per_token: arguments.mock_prefill_us_per_token.unwrap_or(0.0),
            step_us: arguments.mock_step_us.unwrap_or(0.0),
            step_us_per_seq: arguments.mock_step_us_per_seq.unwrap_or(0.0),
        };
        Ok(Self::Mock { times, vocabulary: MockVocabulary::load(path)? })
    }

    /// What of this machine it computes on. Errors: the GPU does not say which it is.
    pub fn device(&self) -> Result<topology::Device, CommandError> {
        match self {
            Self::Cuda(model) => {
                let uuid = model.uuid();
                let uuid = uuid.map_err(|error| CommandError::Unavailable(error.to_string()))?;
                Ok(topology::Device::Gpu(uuid))
            }
            _ => Ok(topology::Device::Cpu),
        }
    }

    /// On what it computes, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Cpu { compute, .. } => {
                let threads = compute.threads();
                format!("the CPU, {threads} thread{}", if threads == 1 { "" } else { "s" })
            }
            Self::Cuda(model) => {
                let device = model.device();
                let name = device.name().map_or_else(|_| String::new(), |name| format!(", {name}"));
                format!("GPU {}{name}", device.ordinal())
            }
            #[cfg(feature = "candle")]
            Self::Candle(_) => "candle's tensors".into(),
            Self::Mock { .. } => "no device: a mock".into(),
        }
    }

    /// How others may read its KV blocks, beside those ways that every worker has.
    pub fn kv_ways(&self) -> &'static [&'static str] {
        match self {
            Self::Cuda(_) => &[kv_transfer::CUDA],
            _ => &[],
        }
    }

    /// What one worker computes with.
    pub fn runner(&self) -> Box<dyn Runner> {
        match self {
            Self::Cpu { model, compute } => {
                Box::new(CpuRunner::new(model.clone(), compute.clone()))
            }
            Self::Cuda(model) => Box::new(CudaRunner::new(model.clone())),
            #[cfg(feature = "candle")]
            Self::Candle(model) => Box::new(engine::CandleRunner::new(model.clone())),
            Self::Mock { times, vocabulary } => {
                Box::new(MockRunner::new(*times, vocabulary.clone()))
            }
        }
    }
}

/// Where compiled kernels are kept: whoever may write there may run code here.
fn kernel_cache(arguments: &EngineArgs) -> Option<PathBuf> {
    let of_user = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
        cache.filter(|cache| cache.is_absolute()).or_else(home)
    };
    let directory = arguments.cache_dir.clone().or_else(|| Some(of_user()?.join("stator")))?;
    Some(directory.join("kernels"))
}

/// The sizes of one worker's engine, behind which this process starts so many others on the same
/// device. Errors: the device has no room for a pool.
pub fn sizes(
    arguments: &EngineArgs,
    runner: &dyn Runner,
    others: usize,
) -> Result<EngineConfig, CommandError> {
    let mut config = EngineConfig {
        block_size: arguments.block_size as usize,
        kv_blocks: 0,
        max_num_seqs: arguments.max_num_seqs as usize,
        max_num_batched_tokens: arguments.max_num_batched_tokens as usize,
        waiting_sequences_max: WAITING_SEQUENCES_MAX,
        speculative_tokens: arguments.speculative_tokens as usize,
        step_target: match arguments.step_target_ms {
            0 => None,
            target_ms => Some(Duration::from_millis(target_ms.into())),
        },
        shares_memory: false,
    };
    config.kv_blocks = match arguments.kv_blocks {
        Some(blocks) => blocks as usize,
        None => fitting_blocks(&config, runner, 1 + others)?,
    };
    Ok(config)
}

fn fitting_blocks(
    config: &EngineConfig,
    runner: &dyn Runner,
    workers: usize,
) -> Result<usize, CommandError> {
    let block_bytes = runner.kv_layout(config.block_size).block_bytes();
    let sizes = config.runner_sizes(runner.facts().context_tokens);
    let pool_bytes = runner.pool_bytes(&sizes, workers).map_err(StartError::from)?;
    let blocks = pool_bytes.unwrap_or(KV_POOL_BYTES) / block_bytes;
    if pool_bytes.is_some() && blocks < KV_BLOCKS_MIN {
        return Err(CommandError::Unavailable(
            "the GPU has no room for a KV pool beside the model; end what else uses it, or use a \
             smaller --max-num-batched-tokens or --max-num-seqs, --quantization or another GPU"
                .into(),
        ));
    }
    Ok(blocks.clamp(2, KV_BLOCKS_MAX))
}
