//! The command's arguments. Those of servers may also be given as environment variables `STATOR_…`.

mod cluster;
mod device;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gateway::{ConnectionLimits, GatewayConfig};

pub use cluster::{
    AdminArgs, ComponentArgs, DataArgs, GatewayArgs, NatsArgs, RouterArgs, TestDefect, TlsArgs,
    UcxMode, WorkerArgs,
};
pub use device::Device;

use crate::hardware::DRIVER_LIMIT_S;

/// OpenAI-compatible LLM inference, from a laptop to a cluster.
#[derive(Debug, Parser)]
#[command(name = "stator", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model: gateway, router, a prefill and a decode worker in one process
    Serve(ServeArgs),
    /// Run a gateway of a cluster: the OpenAI API
    Gateway(GatewayArgs),
    /// Run a router of a cluster: says which workers a request goes to
    Router(RouterArgs),
    /// Run a worker of a cluster that prefers to compute prompts for others
    PrefillWorker(WorkerArgs),
    /// Run a worker of a cluster that prefers to generate answers
    DecodeWorker(WorkerArgs),
    /// Ask a component whether it is ready: exit code 0, or 69
    Health(HealthArgs),
    /// Show the GPUs of this machine, how they reach each other, and the host around them
    Gpus(GpusArgs),
    /// Measure an OpenAI-compatible server under load: latencies, throughput, goodput
    Loadtest(loadtest::Args),
    /// What a worker starts to move KV blocks by UCX
    #[command(hide = true)]
    UcxAgent,
    /// Measure copies of KV blocks between pools on GPUs
    #[command(hide = true)]
    CudaCopies(CopiesArgs),
    /// What keeps weights on a GPU for several workers
    #[command(hide = true)]
    WeightsKeeper(KeeperArgs),
}

/// Arguments of `cuda-copies`.
#[derive(Clone, Debug, Args)]
pub struct CopiesArgs {
    /// MiB of each pool
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(4..=65_536))]
    pub mib: u32,

    /// So many copies are made of each kind
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// The GPU, as the driver counts them
    #[arg(long, default_value_t = 0)]
    pub ordinal: u32,

    /// Be the other process, with a pool of such blocks
    #[arg(long, hide = true, num_args = 2, value_names = ["BYTES", "BLOCKS"])]
    pub source: Vec<usize>,
}

/// Arguments of a process that keeps weights.
#[derive(Clone, Debug, Args)]
pub struct KeeperArgs {
    /// The GPU, as the driver counts them
    #[arg(long)]
    pub ordinal: u32,

    /// As a worker's
    #[arg(long, value_enum)]
    pub quantization: Option<Quantization>,

    /// As a worker's
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,

    /// The model's directory or file
    pub model: PathBuf,

    /// Where it listens
    pub socket: PathBuf,
}

/// Arguments of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Model: a directory in Hugging Face layout (config.json, tokenizer.json, *.safetensors), or a
    /// .gguf file; the bundled demo model if absent
    #[arg(env = "STATOR_MODEL")]
    pub model: Option<String>,

    /// Name that clients put into `model`; the name of its directory or file if absent
    #[arg(long, env = "STATOR_MODEL_NAME")]
    pub model_name: Option<String>,

    /// Address of the OpenAI API
    #[arg(long, env = "STATOR_LISTEN", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// Who may ask, and how slowly.
    #[command(flatten)]
    pub clients: ClientArgs,

    /// Allow an address other than loopback although the API asks for no keys
    #[arg(long, env = "STATOR_INSECURE")]
    pub insecure: bool,

    /// NATS server of a cluster to join: its other components use these workers and this router,
    /// and these theirs; in one process alone if absent
    #[arg(long, env = "STATOR_NATS", value_name = "URL")]
    pub nats: Option<String>,

    /// How to get into it.
    #[command(flatten)]
    pub login: NatsArgs,

    /// HOST under which others of the cluster reach this process; 127.0.0.1 if absent
    #[arg(long, env = "STATOR_ADVERTISE", value_name = "HOST", requires = "nats")]
    pub advertise: Option<String>,

    /// How it shows itself to others of the cluster, and whom it believes.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// What computes.
    #[command(flatten)]
    pub engine: EngineArgs,

    /// Seconds that running requests have after Ctrl-C
    #[arg(long, env = "STATOR_GRACE_PERIOD_S", default_value_t = 10)]
    pub grace_period_s: u64,
}

/// Arguments of everything that serves the API.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Origin whose web pages may ask, https://HOST[:PORT], or * for all; may be repeated, in the
    /// variable with commas. Without it browsers let no page ask
    #[arg(long, env = "STATOR_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<gateway::Origin>,

    /// Seconds that a client may send nothing more of its request, or take nothing more of its
    /// answer, before it is given up
    #[arg(long, env = "STATOR_CLIENT_TIMEOUT", value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub client_timeout: u64,

    /// Requests under way at once; more are answered with 503
    #[arg(long, env = "STATOR_MAX_REQUESTS", value_name = "REQUESTS", default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_requests: u32,
}

impl ClientArgs {
    /// A gateway's limits, as these arguments have them.
    pub fn limits(&self) -> GatewayConfig {
        let timeout = Duration::from_secs(self.client_timeout);
        let requests_max = self.max_requests as usize;
        let connections = ConnectionLimits { stall: timeout, ..Default::default() };
        // Idle connections shall not keep requests out.
        let connections_max = connections.connections_max.max(2 * requests_max);
        GatewayConfig {
            requests_max,
            cors_origins: self.cors_origin.clone(),
            connections: ConnectionLimits { connections_max, ..connections },
            body_silence_max: timeout,
            ..Default::default()
        }
    }
}

/// Arguments of `health`.
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// The component's admin address, or a gateway's address
    #[arg(default_value = "http://127.0.0.1:8000")]
    pub url: String,
}

/// Arguments of `gpus`.
#[derive(Clone, Debug, Args)]
pub struct GpusArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Seconds that the driver has to answer: where a GPU is wedged, it may never do
    #[arg(
        long,
        default_value_t = DRIVER_LIMIT_S,
        value_parser = clap::value_parser!(u32).range(1..=3600),
        value_name = "SECONDS"
    )]
    pub timeout_s: u32,
}

/// Arguments of every worker's engine.
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// What computes: this machine's CPU, or a mock that only takes its time and whose next token is
    /// a function of the KV bytes it reads (MODEL then gives no more than the tokenizer)
    #[arg(long, env = "STATOR_ENGINE", value_enum, default_value_t = EngineKind::Cpu)]
    pub engine: EngineKind,

    /// Device that computes: cpu, or an NVIDIA GPU, cuda or cuda:N (docs/gpu.md)
    #[arg(long, env = "STATOR_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub device: Device,

    /// Whether a token's arithmetic on a GPU may depend on what is computed beside it. The CPU's never
    /// does
    #[arg(long, env = "STATOR_NUMERICS", value_enum, default_value_t = Numerics::Fixed)]
    pub numerics: Numerics,

    /// Microseconds that a mock takes per prompt token; 0 if absent
    #[arg(long, env = "STATOR_MOCK_PREFILL_US_PER_TOKEN", value_parser = microseconds)]
    pub mock_prefill_us_per_token: Option<f64>,

    /// Microseconds that a mock takes per step; 0 if absent
    #[arg(long, env = "STATOR_MOCK_STEP_US", value_parser = microseconds)]
    pub mock_step_us: Option<f64>,

    /// Microseconds that a mock adds to a step per sequence that decodes; 0 if absent
    #[arg(long, env = "STATOR_MOCK_STEP_US_PER_SEQ", value_parser = microseconds)]
    pub mock_step_us_per_seq: Option<f64>,

    /// Sequences that one worker computes at once
    #[arg(long, env = "STATOR_MAX_NUM_SEQS", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_num_seqs: u32,

    /// Tokens that one worker computes in one step
    #[arg(long, env = "STATOR_MAX_NUM_BATCHED_TOKENS", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub max_num_batched_tokens: u32,

    /// Milliseconds that one step takes at most for prompts while others wait for their next token, as
    /// far as that can be predicted; 0: as long as --max-num-batched-tokens take
    #[arg(long, env = "STATOR_STEP_TARGET_MS", value_name = "MS", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub step_target_ms: u32,

    /// Tokens that may be guessed per sequence and step from what its text repeats, and verified
    /// with the step's own token: answers are the same, and sooner there; 0: none
    #[arg(long, env = "STATOR_SPECULATIVE_TOKENS", value_name = "TOKENS", default_value_t = 7,
        value_parser = clap::value_parser!(u32).range(0..=15))]
    pub speculative_tokens: u32,

    /// Tokens per KV block
    #[arg(long, env = "STATOR_BLOCK_SIZE", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub block_size: u32,

    /// KV blocks of each worker; if absent, what fits into 1 GiB, or on a GPU into what is free there,
    /// at most 65,536
    #[arg(long, env = "STATOR_KV_BLOCKS",
        value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    pub kv_blocks: Option<u32>,

    /// Weights in fewer bits than the model's own: half the memory and nearly twice the speed of bf16,
    /// for answers that differ a little. Those of int8 are made when first asked for, and kept in a
    /// file; those of fp8 each time that they are brought to a GPU. There they save memory, and time with
    /// --numerics fast alone: with fixed ones steps are slower
    #[arg(long, env = "STATOR_QUANTIZATION", value_enum)]
    pub quantization: Option<Quantization>,

    /// Directory of that file, and of kernels compiled for a GPU; if absent, the file is beside the
    /// model, and kernels are in the user's cache
    #[arg(long, env = "STATOR_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// Have the weights on a GPU once for all processes of this user that serve the same model there
    /// with this flag. A process of its own keeps them, and ends a while after the last user
    #[arg(long, env = "STATOR_SHARE_WEIGHTS")]
    pub share_weights: bool,

    /// Threads that compute; one per CPU if absent
    #[arg(long, env = "STATOR_THREADS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Kernels on this machine's CPU.
    Cpu,
    /// Nothing: see `--mock-step-us` and its like.
    Mock,
}

/// Whether arithmetic may depend on the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Numerics {
    /// An answer is the same in any company, and wherever it goes on.
    Fixed,
    /// Faster; answers may differ in company.
    Fast,
}

impl From<Numerics> for engine::Numerics {
    fn from(numerics: Numerics) -> Self {
        match numerics {
            Numerics::Fixed => Self::Fixed,
            Numerics::Fast => Self::Fast,
        }
    }
}

/// How weights are stored in place of the model's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// 8 bits, and a scale for each 32.
    Int8,
    /// Floats of 8 bits (e4m3), and a scale for each 128: on a GPU.
    Fp8,
}

/// A duration that a mock may be told: up to a minute.
fn microseconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(us) if (0.0..=60e6).contains(&us) => Ok(us),
        _ => Err("expected microseconds, from 0 to 60000000".into()),
    }
}
