//! Steps of an engine, as a worker makes them: scheduling and sampling are part of the time.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::{
    Compute, CpuRunner, Engine, EngineConfig, KernelPath, Model, SequenceId, SequenceRequest,
    StepOutput,
};
use protocol::v1::{Sampling, Stopping};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// As `stator serve` has them.
const BLOCK_SIZE: usize = 16;
const MAX_NUM_SEQS: usize = 64;
const MAX_NUM_BATCHED_TOKENS: usize = 512;

/// Steps between the last prompt token and the first step that counts.
const WARM_UP_STEPS: usize = 2;

/// Prompts are made of tokens from here on: those before are special in the models of `bench/engine`.
const FIRST_TOKEN: u32 = 300;

/// An engine, and what it was made of.
pub struct Measured {
    engine: Engine,
    kernel_path: KernelPath,
    kv_blocks: usize,
    next_id: u64,
}

/// Wall and CPU time (of all threads of the process), in seconds.
struct Clock {
    began: Instant,
    cpu_s: f64,
}

/// A step's duration in seconds, and what it did.
type Step = (f64, StepOutput);

impl Measured {
    /// An engine with `stator serve`'s sizes and a pool of so many tokens. Errors: the model cannot be
    /// loaded, or memory or threads are refused.
    pub fn load(model: &Path, threads: usize, pool_tokens: usize) -> Result<Self, Box<dyn Error>> {
        let kernel_path = KernelPath::detect();
        let model = Arc::new(Model::load(model, kernel_path)?);
        let compute = Arc::new(Compute::new(threads, kernel_path)?);
        let kv_blocks = pool_tokens.div_ceil(BLOCK_SIZE);
        let config = EngineConfig {
            block_size: BLOCK_SIZE,
            kv_blocks,
            max_num_seqs: MAX_NUM_SEQS,
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
            waiting_sequences_max: MAX_NUM_SEQS,
            speculative_tokens: 0,
            step_target: None,
            shares_memory: false,
        };
        let engine = Engine::new(Box::new(CpuRunner::new(model, compute)), config)?;
        Ok(Self { engine, kernel_path, kv_blocks, next_id: 0 })
    }

    /// What was loaded.
    pub fn description(&self) -> Value {
        json!({
            "kernel_path": self.kernel_path.to_string(),
            "numerics_id": self.engine.numerics_id(),
            "vocabulary_size": self.engine.vocabulary_size(),
            "kv_bytes_per_token": self.engine.layout().block_bytes() / BLOCK_SIZE,
            "context_tokens": self.engine.context_tokens(),
        })
    }

    /// See `Command::Decode`. Errors: a sentence.
    pub fn decode(
        &mut self,
        batch: usize,
        context: usize,
        steps: usize,
        series: &str,
    ) -> Result<Value, String> {
        let blocks = (context + 2 * steps + MAX_NUM_SEQS).div_ceil(BLOCK_SIZE) * batch;
        if blocks > self.kv_blocks || batch > MAX_NUM_SEQS || context * steps * batch == 0 {
            let (most, pool) = (MAX_NUM_SEQS, self.kv_blocks * BLOCK_SIZE);
            return Err(format!(
                "1 to {most} sequences with tokens must fit into a pool of {pool} tokens"
            ));
        }
        let ids = (0..batch).map(|index| self.begin(context, u32::MAX, series, index));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let computed = self.decode_begun(batch, steps);
        ids.into_iter().for_each(|id| self.engine.release(id));
        computed
    }

    fn decode_begun(&mut self, batch: usize, steps: usize) -> Result<Value, String> {
        while self.step()?.1.prefill_tokens > 0 {}
        for _ in 0..WARM_UP_STEPS {
            self.step()?;
        }
        let clock = Clock::start();
        let done = (0..steps).map(|_| self.step()).collect::<Result<Vec<_>, _>>()?;
        let times = clock.times();
        if done.iter().any(|(_, output)| output.decode_sequences != batch) {
            return Err("a step computed something else than one token of each sequence".into());
        }
        let attended: usize = done.iter().map(|(_, output)| output.decode_attended).sum();
        let mut seconds: Vec<f64> = done.iter().map(|(seconds, _)| *seconds).collect();
        seconds.sort_by(f64::total_cmp);
        Ok(json!({
            "tokens": batch * steps,
            "steps": steps,
            "attended_per_step": attended as f64 / steps as f64,
            "wall_s": times.0,
            "cpu_s": times.1,
            "step_min_s": seconds[0],
            "step_median_s": seconds[steps / 2],
        }))
    }

    /// See `Command::Prefill`. Errors: a sentence.
    pub fn prefill(&mut self, tokens: usize, series: &str) -> Result<Value, String> {
        let clock = Clock::start();
        let id = self.begin(tokens, 1, series, 0)?;
        let mut steps: Vec<Step> = Vec::new();
        while steps.last().is_none_or(|(_, output)| output.sequences.is_empty()) {
            steps.push(self.step()?);
        }
        let times = clock.times();
        self.engine.release(id);
        let of_step = |(seconds, output): &Step| {
            let StepOutput { prefill_tokens, prefill_attended, .. } = output;
            json!({"tokens": prefill_tokens, "attended": prefill_attended, "wall_s": seconds})
        };
        let computed: usize = steps.iter().map(|(_, output)| output.prefill_tokens).sum();
        Ok(json!({
            "tokens": computed,
            "wall_s": times.0,
            "cpu_s": times.1,
            "steps": steps.iter().map(of_step).collect::<Vec<_>>(),
        }))
    }

    /// Gives the engine a prompt, the same one for the same series and index.
    fn begin(
        &mut self,
        tokens: usize,
        max_tokens: u32,
        series: &str,
        index: usize,
    ) -> Result<SequenceId, String> {
        self.next_id += 1;
        let id = SequenceId(self.next_id);
        let vocabulary = FIRST_TOKEN..self.engine.vocabulary_size() as u32;
        let mut rng = StdRng::seed_from_u64(index as u64);
        let request = SequenceRequest {
            id,
            prompt: (0..tokens).map(|_| rng.random_range(vocabulary.clone())).collect(),
            generated: Vec::new(),
            sampling: Sampling::default(),
            stopping: Stopping { max_tokens, ignore_eos: true, ..Default::default() },
            cache_salt: series.to_string(),
            grammar: None,
            prompt_logprobs: None,
            priority: 0,
        };
        self.engine.generate(request).map_err(|refused| refused.to_string())?;
        Ok(id)
    }

    fn step(&mut self) -> Result<Step, String> {
        let began = Instant::now();
        let output = self.engine.step().map_err(|error| error.to_string())?;
        let seconds = began.elapsed().as_secs_f64();
        match output.is_idle() {
            true => Err("the engine has nothing to compute although sequences wait".into()),
            false => Ok((seconds, output)),
        }
    }
}

impl Clock {
    fn start() -> Self {
        Self { cpu_s: cpu_s(), began: Instant::now() }
    }

    fn times(&self) -> (f64, f64) {
        (self.began.elapsed().as_secs_f64(), cpu_s() - self.cpu_s)
    }
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
