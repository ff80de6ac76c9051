//! What fixed shapes cost: prefill and decode by our kernels, and by candle with and without them.
//!
//!     cargo run --release -p engine --features candle --example fixed_shapes -- MODEL [cuda:N]
//!
//! Prints tokens per second, the best of three runs. Without a device candle computes on the CPU.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::{
    CandleDevice, CandleModel, CandleRunner, Compute, CpuRunner, Engine, EngineConfig, KernelPath,
    Model, Numerics, Runner, SequenceId, SequenceRequest,
};
use protocol::v1::{Sampling, Stopping};

const ROUNDS: usize = 3;
const PROMPT_TOKENS: usize = 512;
const BATCHES: [usize; 3] = [1, 8, 64];
const DECODE_STEPS: usize = 32;
/// Tokens before this one are special in the models of `bench/engine`.
const FIRST_TOKEN: u32 = 300;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: fixed_shapes MODEL [cuda:N]")?;
    let device = match arguments.next().as_deref().map(|name| name.strip_prefix("cuda:")) {
        None => CandleDevice::Cpu,
        Some(ordinal) => CandleDevice::Cuda { ordinal: ordinal.unwrap_or("").parse()? },
    };
    let model = Path::new(&model);
    let path = KernelPath::detect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let compute = Arc::new(Compute::new(threads, path)?);
    let ours = CpuRunner::new(Arc::new(Model::load(model, path)?), compute);
    report(&format!("our kernels, {path}"), Box::new(ours))?;
    for numerics in [Numerics::Fast, Numerics::Fixed] {
        let loaded = Arc::new(CandleModel::load(model, device, numerics)?);
        let title = format!("candle, {}", loaded.numerics_id);
        report(&title, Box::new(CandleRunner::new(loaded)))?;
    }
    Ok(())
}

fn report(title: &str, runner: Box<dyn Runner>) -> Result<(), Box<dyn Error>> {
    let mut measured = Measured::new(runner)?;
    println!("{title}");
    let best = measured.best(1, 0)?.0;
    println!("  prefill {PROMPT_TOKENS}: {best:.0} tokens/s");
    for batch in BATCHES {
        let best = measured.best(batch, DECODE_STEPS)?.1;
        println!("  decode batch {batch}: {best:.0} tokens/s");
    }
    Ok(())
}

struct Measured {
    engine: Engine,
    next_id: u64,
}

impl Measured {
    fn new(runner: Box<dyn Runner>) -> Result<Self, Box<dyn Error>> {
        let config = EngineConfig {
            block_size: 16,
            kv_blocks: 4096,
            max_num_seqs: 64,
            max_num_batched_tokens: PROMPT_TOKENS,
            waiting_sequences_max: 64,
            speculative_tokens: 0,
            step_target: None,
            shares_memory: false,
        };
        Ok(Self { engine: Engine::new(runner, config)?, next_id: 0 })
    }

    /// The best of some runs, each for itself.
    fn best(&mut self, batch: usize, steps: usize) -> Result<(f64, f64), Box<dyn Error>> {
        let mut best = (0.0f64, 0.0f64);
        for _ in 0..ROUNDS {
            let (prefill, decode) = self.run(batch, steps)?;
            best = (best.0.max(prefill), best.1.max(decode));
        }
        Ok(best)
    }

    /// Tokens per second of prompts of `batch` sequences that have nothing in common, and of the steps
    /// after them.
    fn run(&mut self, batch: usize, steps: usize) -> Result<(f64, f64), Box<dyn Error>> {
        let first_id = self.next_id;
        for _ in 0..batch {
            let request = self.request(steps as u32 + 1);
            self.engine.generate(request).ok();
        }
        let (mut prompt_tokens, began) = (0, Instant::now());
        while prompt_tokens < batch * PROMPT_TOKENS {
            prompt_tokens += self.engine.step()?.prefill_tokens;
        }
        let prefill = prompt_tokens as f64 / began.elapsed().as_secs_f64();
        let (mut decoded, began) = (0, Instant::now());
        loop {
            let step = self.engine.step()?;
            if step.is_idle() {
                break;
            }
            decoded += step.decode_sequences;
        }
        let decode = decoded as f64 / began.elapsed().as_secs_f64();
        (first_id..self.next_id).for_each(|id| self.engine.release(SequenceId(id)));
        Ok((prefill, decode))
    }

    fn request(&mut self, max_tokens: u32) -> SequenceRequest {
        let id = self.next_id;
        self.next_id += 1;
        let prompt = (0..PROMPT_TOKENS as u32).map(|at| FIRST_TOKEN + (at * 7 + id as u32) % 500);
        SequenceRequest {
            id: SequenceId(id),
            prompt: prompt.collect(),
            generated: Vec::new(),
            sampling: Sampling::default(),
            stopping: Stopping { max_tokens, ignore_eos: true, ..Default::default() },
            // Nothing is found of earlier runs.
            cache_salt: id.to_string(),
            grammar: None,
            prompt_logprobs: None,
            priority: 0,
        }
    }
}
