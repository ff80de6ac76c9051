//! The engine: sequences go in, and each step gives tokens.

mod compute;
mod output;
mod warm_up;

use std::collections::HashMap;
use std::time::Duration;

use grammar::GrammarError;
use kv_transfer::{BlockWriter, KvLayout, KvMemory};
use protocol::v1::LatencyModel;
use protocol::{BlockHash, StepShape};

use crate::kv::{BlockPool, KvEvent, Reserved};
use crate::runner::{Computed, Facts, Runner, RunnerError, Sizes, SpanOutput, Watch};
use crate::schedule::{
    Guesses, Limits, Purpose, Scheduled, Scheduler, Sequence, SequenceId, SequenceRequest,
};

use output::attended;
pub use output::{Load, SequenceOutput, StepOutput};

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Tokens per KV block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub kv_blocks: usize,
    /// Sequences that compute at once.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// Sequences that wait; more are refused.
    pub waiting_sequences_max: usize,
    /// Tokens that a sequence may guess in a step (prompt lookup), to have them computed with the last
    /// one; 0: none.
    pub speculative_tokens: usize,
    /// What a step takes for prompts beside streams at most, as far as `learn_latency` knows; none:
    /// as long as it takes.
    pub step_target: Option<Duration>,
    /// Whether the pool's memory can be given to another process.
    pub shares_memory: bool,
}

impl EngineConfig {
    /// What a runner has to have room for, where sequences have so many tokens at most.
    pub fn runner_sizes(&self, context_tokens: usize) -> Sizes {
        Sizes {
            block_size: self.block_size,
            kv_blocks: self.kv_blocks,
            shares_memory: self.shares_memory,
            step_tokens: self.max_num_batched_tokens,
            spans: self.max_num_seqs,
            context_tokens,
        }
    }
}

/// Why the engine does not take a sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedSequence {
    /// It can never be computed here.
    #[error("{0}")]
    Invalid(String),
    /// A limit is reached; it may be taken later.
    #[error("{0}")]
    Overloaded(&'static str),
    /// Its grammar cannot be followed.
    #[error("{0}")]
    Grammar(#[from] GrammarError),
}

/// See the module's description.
pub struct Engine {
    runner: Box<dyn Runner>,
    facts: Facts,
    config: EngineConfig,
    context_tokens: usize,
    layout: KvLayout,
    memory: KvMemory,
    pool: BlockPool,
    scheduler: Scheduler,
    /// Blocks set aside; their prompts are computed elsewhere.
    reserved: HashMap<SequenceId, Sequence>,
    /// Prompts computed for a reader that has not finished reading.
    held: HashMap<SequenceId, Sequence>,
}

impl Engine {
    /// An idle engine. Errors: there is no memory for the pool.
    pub fn new(mut runner: Box<dyn Runner>, config: EngineConfig) -> Result<Self, RunnerError> {
        let (facts, layout) = (runner.facts().clone(), runner.kv_layout(config.block_size));
        let context_tokens = facts.context_tokens.min(config.kv_blocks * config.block_size);
        let memory = runner.allocate(&layout, &config.runner_sizes(context_tokens))?;
        let limits = Limits {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            speculative_tokens: config.speculative_tokens,
            step_target_us: config.step_target.map(|target| target.as_secs_f32() * 1e6),
        };
        Ok(Self {
            context_tokens,
            runner,
            facts,
            config,
            layout,
            memory,
            pool: BlockPool::new(config.kv_blocks),
            scheduler: Scheduler::new(limits),
            reserved: HashMap::new(),
            held: HashMap::new(),
        })
    }

    /// The layout of its KV blocks.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Token ids are below this.
    pub fn vocabulary_size(&self) -> usize {
        self.facts.vocabulary_size
    }

    /// Tokens and KV are equal within one id.
    pub fn numerics_id(&self) -> &str {
        &self.facts.numerics_id
    }

    /// Where its KV blocks lie.
    pub fn memory(&self) -> &KvMemory {
        &self.memory
    }

    /// The longest sequence it can hold, prompt and output together.
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Tells when what it computes with is lost.
    pub fn watch(&self) -> Option<Watch> {
        self.runner.watch()
    }

    /// Takes a sequence for all its tokens.
    pub fn generate(&mut self, request: SequenceRequest) -> Result<(), RefusedSequence> {
        let sequence = self.new_sequence(request, Purpose::Generate)?;
        self.scheduler.add(sequence);
        Ok(())
    }

    /// Takes a sequence for its first token. Its blocks stay as they are until `release`.
    pub fn prefill(&mut self, request: SequenceRequest) -> Result<(), RefusedSequence> {
        let sequence = self.new_sequence(request, Purpose::Prefill)?;
        self.scheduler.add(sequence);
        Ok(())
    }

    /// Sets all blocks of a prompt aside, to be filled from elsewhere. Ends with `activate` or
    /// `release`.
    pub fn reserve(&mut self, request: SequenceRequest) -> Result<Reserved, RefusedSequence> {
        let others_wait = self.scheduler.waiting().len() > 0;
        if others_wait || !self.scheduler.has_room(self.reserved.len()) {
            return Err(RefusedSequence::Overloaded("as many sequences as allowed are running"));
        }
        let mut sequence = self.new_sequence(request, Purpose::Generate)?;
        sequence.take_cached_prefix(&mut self.pool);
        sequence.cached_tokens = Some(sequence.computed);
        if !sequence.grow(sequence.tokens.len(), &mut self.pool) {
            sequence.release(&mut self.pool);
            return Err(RefusedSequence::Overloaded("the KV pool has no room"));
        }
        let cached_blocks = sequence.computed / self.config.block_size;
        let to_fill = sequence.blocks[cached_blocks..].to_vec();
        self.reserved.insert(sequence.id, sequence);
        // SAFETY: the blocks were just allocated to this sequence alone, which neither computes
        // nor gives them back while it is reserved.
        let writer = unsafe { BlockWriter::new(self.memory.clone(), self.layout.clone(), to_fill) };
        Ok(Reserved { cached_blocks, writer })
    }

    /// A reserved sequence whose blocks were all filled and verified goes on after `first_token`.
    /// The reservation's writer must be gone. Says whether that token is the last.
    pub fn activate(&mut self, id: SequenceId, first_token: u32) -> bool {
        let Some(mut sequence) = self.reserved.remove(&id) else { return true };
        sequence.advance(sequence.uncomputed(), &mut self.pool);
        self.resume(sequence, Some(first_token))
    }

    /// A reserved sequence whose transfer failed computes its prompt here. `first_token` is the
    /// token that was already given out, if any. Otherwise as `activate`.
    pub fn compute_reserved(&mut self, id: SequenceId, first_token: Option<u32>) -> bool {
        let Some(sequence) = self.reserved.remove(&id) else { return true };
        self.resume(sequence, first_token)
    }

    fn resume(&mut self, mut sequence: Sequence, first_token: Option<u32>) -> bool {
        let eos = &self.facts.eos_token_ids;
        // A token that does not match comes of a worker that does not follow grammars; the next
        // choice then fails, and says so.
        let _failed_grammar = first_token.map(|token| sequence.follow(token));
        let finish = first_token.and_then(|token| sequence.push(token, eos, self.context_tokens));
        sequence.draft();
        if finish.is_some() {
            sequence.release(&mut self.pool);
        } else {
            self.scheduler.resume(sequence);
        }
        finish.is_some()
    }

    /// Ends a sequence in whatever state it is, and frees its blocks; nobody may be filling or
    /// reading them any more. Unknown ones have ended.
    pub fn release(&mut self, id: SequenceId) {
        let states = [self.reserved.remove(&id), self.held.remove(&id), self.scheduler.remove(id)];
        for mut sequence in states.into_iter().flatten() {
            sequence.release(&mut self.pool);
        }
        self.debug_check();
    }

    /// Computes no more of a sequence whose news nobody takes. Blocks that someone may be filling
    /// or reading stay until `release`.
    pub fn abandon(&mut self, id: SequenceId) {
        self.end(id);
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let running = self.scheduler.running();
        let sequences = self.scheduler.waiting().chain(running);
        let waiting_tokens =
            sequences.map(|sequence| sequence.given_tokens.saturating_sub(sequence.computed));
        Load {
            waiting_prompt_tokens: waiting_tokens.sum(),
            sequence_tokens: running
                .iter()
                .chain(self.scheduler.waiting())
                .chain(self.reserved.values())
                .map(|sequence| sequence.tokens.len())
                .sum(),
            running: running.len() + self.reserved.len(),
            waiting: self.scheduler.waiting().len(),
            preemptions: self.scheduler.preemptions(),
            blocks: self.pool.counts(),
        }
    }

    /// What changed in the prefix cache since the last call.
    pub fn take_kv_events(&mut self) -> Vec<KvEvent> {
        self.pool.take_events()
    }

    /// What the prefix cache holds, in no order.
    pub fn cached_hashes(&self) -> Vec<BlockHash> {
        self.pool.hashes().collect()
    }

    /// How long steps take here: for the step target, and for guesses to be made where they pay.
    pub fn learn_latency(&mut self, latency: LatencyModel) {
        self.scheduler.learn_latency(latency);
    }

    /// Whether it makes anything of `learn_latency`.
    pub fn uses_latency(&self) -> bool {
        self.config.step_target.is_some() || self.config.speculative_tokens > 0
    }

    /// Computes one batch. Errors: the device failed, and the engine is of no use any more.
    pub fn step(&mut self) -> Result<StepOutput, RunnerError> {
        self.step_announced(|_| ())
    }

    /// Computes one batch, and says what it is before it begins to.
    pub fn step_announced(
        &mut self,
        announce: impl FnOnce(StepShape),
    ) -> Result<StepOutput, RunnerError> {
        let scheduled = self.scheduler.schedule(self.reserved.len(), &mut self.pool);
        let mut output = StepOutput::default();
        if scheduled.is_empty() {
            return Ok(output);
        }
        for Scheduled { index, count } in &scheduled {
            output.count(&self.scheduler.running()[*index], *count);
        }
        announce(output.shape());
        let Computed { spans, took, is_simulated } = self.compute(&scheduled)?;
        (output.took, output.is_simulated) = (took, is_simulated);
        let mut ended = Vec::new();
        for (Scheduled { index, count }, computed) in scheduled.into_iter().zip(spans) {
            let news = self.conclude(index, count, computed, &mut output.guesses);
            let sequence = &self.scheduler.running()[index];
            let is_computed = sequence.purpose == Purpose::Prefill && !news.tokens.is_empty();
            if news.has_ended() || is_computed {
                ended.push(sequence.id);
            }
            if !news.is_empty() {
                output.sequences.push(news);
            }
        }
        ended.into_iter().for_each(|id| self.end(id));
        self.debug_check();
        Ok(output)
    }

    /// A sequence of which `count` tokens were computed, drafts among them.
    fn conclude(
        &mut self,
        index: usize,
        count: usize,
        computed: SpanOutput,
        guesses: &mut Guesses,
    ) -> SequenceOutput {
        let Self { scheduler, pool, facts, .. } = self;
        let sequence = &mut scheduler.running_mut()[index];
        let mut news = SequenceOutput::nothing(sequence.id);
        // What is computed again after preemption was reported before.
        let known = sequence.prompt_report.len().saturating_sub(sequence.computed);
        sequence.prompt_report.extend(computed.prompt.into_iter().skip(known));
        if sequence.tokens.len() == sequence.given_tokens && !computed.tokens.is_empty() {
            news.cached_tokens = sequence.cached_tokens;
            news.prompt_report = std::mem::take(&mut sequence.prompt_report);
            // Said once; should the prompt be computed again, its cache will do.
            sequence.prompt_logprobs = None;
        }
        let drafts = count.saturating_sub(sequence.uncomputed());
        guesses.add(sequence.learn(drafts, computed.tokens.len().saturating_sub(1)));
        sequence.advance(count.min(sequence.uncomputed()), pool);
        // A prefill's tokens go on in another pool, which may have room where this has not.
        let tokens_max = match sequence.purpose {
            Purpose::Prefill => facts.context_tokens,
            Purpose::Generate => self.context_tokens,
        };
        for token in computed.tokens {
            // A draft that came true is computed already.
            sequence.advance(sequence.uncomputed(), pool);
            news.finish = sequence.push(token.id, &facts.eos_token_ids, tokens_max);
            news.tokens.push(token);
            if news.finish.is_some() {
                break;
            }
        }
        if !news.tokens.is_empty() {
            sequence.draft();
            sequence.trim(pool);
        }
        if sequence.purpose == Purpose::Prefill {
            news.ready_blocks = sequence.newly_ready_blocks();
        }
        news.failure = computed.failure;
        news
    }

    /// Takes a sequence out of the schedule. A prefill's blocks are held for their reader.
    fn end(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.scheduler.remove(id) else { return };
        if sequence.purpose == Purpose::Prefill {
            self.held.insert(id, sequence);
        } else {
            sequence.release(&mut self.pool);
        }
    }

    fn new_sequence(
        &self,
        mut request: SequenceRequest,
        purpose: Purpose,
    ) -> Result<Sequence, RefusedSequence> {
        let context = self.context_tokens;
        let invalid = |message: String| Err(RefusedSequence::Invalid(message));
        if request.prompt.is_empty() {
            return invalid("the prompt is empty".into());
        }
        let tokens = request.prompt.len() + request.generated.len();
        if tokens >= context {
            return invalid(format!("the prompt has {tokens} tokens; at most {} fit", context - 1));
        }
        let (generated, wanted) = (request.generated.len(), request.stopping.max_tokens);
        if generated >= wanted as usize {
            return invalid(format!("max_tokens is {wanted}, and {generated} are there already"));
        }
        let vocabulary = self.facts.vocabulary_size;
        let mut given = request.prompt.iter().chain(&request.generated);
        if let Some(token) = given.find(|token| **token as usize >= vocabulary) {
            return invalid(format!("token {token} is not in the vocabulary of {vocabulary}"));
        }
        if self.scheduler.waiting().len() >= self.config.waiting_sequences_max {
            return Err(RefusedSequence::Overloaded("too many sequences are waiting"));
        }
        if purpose == Purpose::Generate {
            // What is expected to come ends with the context too.
            let room = (context - request.prompt.len()) as u32;
            request.stopping.max_tokens = wanted.min(room);
        }
        let numerics_id = &self.facts.numerics_id;
        Ok(Sequence::new(request, purpose, numerics_id, self.config.block_size)?)
    }

    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.pool.assert_consistent();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{MockRunner, MockTimes, MockVocabulary};
    use protocol::v1::{FinishReason, Stopping};

    const CONFIG: EngineConfig = EngineConfig {
        block_size: 4,
        kv_blocks: 2,
        max_num_seqs: 1,
        max_num_batched_tokens: 100,
        waiting_sequences_max: 1,
        speculative_tokens: 0,
        step_target: None,
        shares_memory: false,
    };

    /// How a sequence whose prompt leaves room for one token ends with that token.
    #[track_caller]
    fn check_end_of_full(
        submit: fn(&mut Engine, SequenceRequest) -> Result<(), RefusedSequence>,
        model_context_tokens: usize,
        expected: Option<FinishReason>,
    ) {
        let vocabulary = MockVocabulary {
            vocabulary_size: 10,
            words: vec![1],
            context_tokens: model_context_tokens,
            eos_token_ids: Vec::new(),
        };
        let runner = MockRunner::new(MockTimes::default(), vocabulary);
        let mut engine = Engine::new(Box::new(runner), CONFIG).unwrap();
        let request = SequenceRequest {
            id: SequenceId(1),
            prompt: vec![1; 7],
            generated: Vec::new(),
            sampling: Default::default(),
            stopping: Stopping { max_tokens: 5, ..Default::default() },
            cache_salt: String::new(),
            grammar: None,
            prompt_logprobs: None,
            priority: 0,
        };
        submit(&mut engine, request).unwrap();
        assert_eq!(engine.step().unwrap().sequences[0].finish, expected);
    }

    /// Whatever a request asks for, no guess has a place behind the context.
    #[test]
    fn guesses_end_with_the_context() {
        let vocabulary = MockVocabulary {
            vocabulary_size: 2,
            words: vec![1],
            context_tokens: 64,
            eos_token_ids: Vec::new(),
        };
        let config = EngineConfig { kv_blocks: 16, speculative_tokens: 15, ..CONFIG };
        let runner = MockRunner::new(MockTimes::default(), vocabulary);
        let mut engine = Engine::new(Box::new(runner), config).unwrap();
        let request = SequenceRequest {
            id: SequenceId(1),
            prompt: vec![1; 20],
            generated: Vec::new(),
            sampling: Default::default(),
            stopping: Stopping { max_tokens: u32::MAX, ..Default::default() },
            cache_salt: String::new(),
            grammar: None,
            prompt_logprobs: None,
            priority: 0,
        };
        engine.generate(request).unwrap();
        let (mut tokens, mut guessed) = (0, 0);
        loop {
            let output = engine.step().unwrap();
            guessed += output.guesses.computed;
            tokens += output.sequences.iter().map(|news| news.tokens.len()).sum::<usize>();
            // The pool has as many blocks as the context, and a place behind it would be another.
            assert!(engine.load().blocks.used <= 16);
            if output.sequences.iter().any(|news| news.finish.is_some()) {
                break;
            }
        }
        assert_eq!((tokens, guessed > 0), (44, true));
    }

    #[test]
    fn a_full_pool_ends_a_text_only_where_its_tokens_would_lie() {
        check_end_of_full(Engine::generate, 100, Some(FinishReason::Length));
        check_end_of_full(Engine::prefill, 100, None);
        check_end_of_full(Engine::prefill, 8, Some(FinishReason::Length));
    }
}
