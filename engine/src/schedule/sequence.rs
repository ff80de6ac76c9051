//! One request inside the engine.

use grammar::{Grammar, GrammarError, GrammarState};
use protocol::v1::{FinishReason, Sampling, Stopping, Token};
use protocol::{BlockHash, BlockHasher};

use super::lookup::{Guesses, Guessing, look_up};
use crate::kv::BlockPool;

/// Tokens that a grammar forces and that a step computes at once.
const DRAFTS_MAX: usize = 15;

/// Tokens of a prompt that is reported on in one step: each has logits over the whole vocabulary.
const REPORTED_TOKENS_MAX: usize = 64;

/// Names a sequence within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What a sequence is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// All its tokens.
    Generate,
    /// The first token; then its blocks are held for a reader until released.
    Prefill,
}

/// What the engine is asked to do.
#[derive(Clone, Debug)]
pub struct SequenceRequest {
    /// Chosen by the caller, unique in this engine.
    pub id: SequenceId,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// What another engine has generated of the answer already: it goes on after these.
    pub generated: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to stop.
    pub stopping: Stopping,
    /// Separates prefix caches.
    pub cache_salt: String,
    /// What the output must match.
    pub grammar: Option<Grammar>,
    /// Report the prompt's own tokens, with so many alternatives beside each.
    pub prompt_logprobs: Option<u32>,
    /// Lower is earlier.
    pub priority: i32,
}

/// Who comes first: lower priorities, then what came earlier. What has waited for too long has the
/// lowest there is (see `Scheduler`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The request's.
    pub priority: i32,
    /// Rises from sequence to sequence.
    pub arrival: u64,
}

/// A sequence on its way: tokens present, tokens computed, blocks held.
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    /// What it is for.
    pub purpose: Purpose,
    /// Prompt and output so far.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt_tokens: usize,
    /// How many it began with: the prompt, and what there was of the answer.
    pub given_tokens: usize,
    /// Tokens whose KV is in `blocks`. The scheduler makes them catch up with `tokens`.
    pub computed: usize,
    /// Blocks held, in order.
    pub blocks: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to stop.
    pub stopping: Stopping,
    /// Prompt tokens found in the prefix cache when first scheduled.
    pub cached_tokens: Option<usize>,
    /// Prefill only: blocks already told to be complete.
    pub announced_blocks: usize,
    /// Where the output is in its grammar.
    pub grammar: Option<GrammarState>,
    /// Tokens that are expected to come next: computed with the last one, and verified then.
    pub drafts: Vec<u32>,
    /// Alternatives to report beside each token of the prompt, where that is asked for.
    pub prompt_logprobs: Option<u32>,
    /// That report, as far as it goes: from the second token on.
    pub prompt_report: Vec<Token>,
    /// How many tokens this step computes: the scheduler's notes.
    pub planned: usize,
    /// The step in which it last computed something.
    pub last_step: u64,
    /// The step before which it came.
    pub arrived_at: u64,
    /// Its place among others.
    pub rank: Rank,
    /// The drafts are a guess, which nothing but the tokens so far speaks for.
    is_guess: bool,
    guessing: Guessing,
    hasher: BlockHasher,
    hashes: Vec<BlockHash>,
    registered_blocks: usize,
}

impl Sequence {
    /// A sequence of which nothing is computed. `numerics_id` salts its block hashes. Errors: what was
    /// generated already does not match the grammar.
    pub fn new(
        request: SequenceRequest,
        purpose: Purpose,
        numerics_id: &str,
        block_size: usize,
    ) -> Result<Self, GrammarError> {
        let mut grammar = request.grammar.as_ref().map(Grammar::begin);
        if let Some(grammar) = &mut grammar {
            request.generated.iter().try_for_each(|token| grammar.accept(*token))?;
        }
        let hasher = BlockHasher::new(numerics_id, &request.cache_salt, block_size);
        let prompt_tokens = request.prompt.len();
        let mut tokens = request.prompt;
        tokens.extend(request.generated);
        let mut sequence = Self {
            id: request.id,
            purpose,
            prompt_tokens,
            given_tokens: tokens.len(),
            tokens,
            computed: 0,
            blocks: Vec::new(),
            sampling: request.sampling,
            stopping: request.stopping,
            cached_tokens: None,
            announced_blocks: 0,
            grammar,
            drafts: Vec::new(),
            prompt_logprobs: request.prompt_logprobs,
            prompt_report: Vec::new(),
            planned: 0,
            last_step: 0,
            arrived_at: 0,
            rank: Rank { priority: request.priority, arrival: 0 },
            is_guess: false,
            guessing: Guessing::default(),
            hasher,
            hashes: Vec::new(),
            registered_blocks: 0,
        };
        sequence.draft();
        Ok(sequence)
    }

    /// Tokens that wait to be computed.
    pub fn uncomputed(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens to compute in a step with room for `budget`: those that wait, then drafts.
    pub fn chunk(&self, budget: usize) -> usize {
        let uncomputed = self.uncomputed();
        match self.prompt_logprobs {
            Some(_) if self.in_prefill() => uncomputed.min(budget).min(REPORTED_TOKENS_MAX),
            _ => (uncomputed + self.drafts.len()).min(budget),
        }
    }

    /// Output tokens so far, with those it began with.
    pub fn output_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Whether it still computes what it began with.
    pub fn in_prefill(&self) -> bool {
        self.computed < self.given_tokens
    }

    /// Takes what the prefix cache has of this sequence, except for its last token, whose logits
    /// are needed.
    pub fn take_cached_prefix(&mut self, pool: &mut BlockPool) {
        debug_assert!(self.blocks.is_empty() && self.computed == 0);
        if self.prompt_logprobs.is_some() {
            // The logits of what the cache has are not in it.
            return;
        }
        let block_size = self.hasher.block_size();
        self.extend_hashes(self.tokens.len() / block_size);
        let useful = (self.tokens.len() - 1) / block_size;
        self.blocks = pool.share_prefix(&self.hashes[..useful]);
        self.computed = self.blocks.len() * block_size;
        self.registered_blocks = self.blocks.len();
    }

    /// Takes blocks for the first `tokens` tokens. False, and nothing changed, if there are none.
    pub fn grow(&mut self, tokens: usize, pool: &mut BlockPool) -> bool {
        let missing = tokens.div_ceil(self.hasher.block_size()).saturating_sub(self.blocks.len());
        let Some(blocks) = pool.allocate(missing) else { return false };
        self.blocks.extend(blocks);
        true
    }

    /// Gives the blocks back that only drafts needed.
    pub fn trim(&mut self, pool: &mut BlockPool) {
        let needed = self.tokens.len().div_ceil(self.hasher.block_size());
        if self.purpose == Purpose::Generate && self.blocks.len() > needed {
            pool.release(&self.blocks.split_off(needed));
        }
    }

    /// Tokens that can be computed in the blocks it has.
    pub fn room(&self) -> usize {
        self.blocks.len() * self.hasher.block_size() - self.computed
    }

    /// Blocks that its tokens still need.
    pub fn missing_blocks(&self) -> usize {
        let needed = self.tokens.len().div_ceil(self.hasher.block_size());
        needed.saturating_sub(self.blocks.len())
    }

    /// Lets go of all blocks: what was computed must be computed again.
    pub fn release(&mut self, pool: &mut BlockPool) {
        pool.release(&std::mem::take(&mut self.blocks));
        self.computed = 0;
        self.registered_blocks = 0;
    }

    /// `tokens` more tokens have been computed: makes full blocks findable.
    pub fn advance(&mut self, tokens: usize, pool: &mut BlockPool) {
        self.computed += tokens;
        let full_blocks = self.computed / self.hasher.block_size();
        self.extend_hashes(full_blocks);
        for index in self.registered_blocks..full_blocks {
            pool.register(self.blocks[index], self.hashes[index]);
        }
        self.registered_blocks = full_blocks;
    }

    /// Prefill only: blocks that became complete since the last call. The last block of
    /// what it began with counts as complete once all of that is computed.
    pub fn newly_ready_blocks(&mut self) -> Vec<u32> {
        let block_size = self.hasher.block_size();
        let done = !self.in_prefill();
        let ready =
            if done { self.given_tokens.div_ceil(block_size) } else { self.computed / block_size };
        let start = std::mem::replace(&mut self.announced_blocks, ready);
        self.blocks[start..ready].to_vec()
    }

    /// A token that was chosen elsewhere comes next. Errors: it does not match the grammar.
    pub fn follow(&mut self, token: u32) -> Result<(), GrammarError> {
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.accept(token))
    }

    /// Looks for what must come next.
    pub fn draft(&mut self) {
        self.forget_drafts();
        if let (Purpose::Generate, Some(grammar)) = (self.purpose, &mut self.grammar) {
            self.drafts = grammar.forced();
            self.drafts.truncate(DRAFTS_MAX.min(self.drafts_useful()));
        }
    }

    /// Guesses at most `count` tokens that may come next, where none are known to and only the newest
    /// token waits to be computed. Guesses pay of which `share` comes true.
    pub fn guess(&mut self, count: usize, share: f32) {
        let streams = self.purpose == Purpose::Generate && !self.in_prefill();
        if !streams || self.uncomputed() != 1 || !self.drafts.is_empty() {
            return;
        }
        let count = count.min(self.drafts_useful());
        let count = if count > 0 { count.min(self.guessing.tokens_max(share)) } else { 0 };
        if count > 0 {
            self.drafts = look_up(&self.tokens, count);
            self.is_guess = !self.drafts.is_empty();
        }
    }

    /// `accepted` of `computed` drafts came true. Gives the guesses among them: all or none.
    pub fn learn(&mut self, computed: usize, accepted: usize) -> Guesses {
        if !self.is_guess || computed == 0 {
            return Guesses::default();
        }
        self.guessing.learn(computed, accepted);
        Guesses { computed: computed as u64, accepted: accepted as u64 }
    }

    /// Expects nothing any more.
    pub fn forget_drafts(&mut self) {
        self.drafts.clear();
        self.is_guess = false;
    }

    /// So many may come true before the text ends: its last token is chosen, not computed.
    fn drafts_useful(&self) -> usize {
        (self.stopping.max_tokens as usize).saturating_sub(self.output_tokens() + 1)
    }

    /// Appends an output token and says whether the sequence ends with it.
    pub fn push(&mut self, token: u32, eos: &[u32], tokens_max: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        let output_tokens = self.output_tokens();
        // Where a grammar ends, nothing else can come.
        let grammar_ends = self.grammar.is_some() && eos.contains(&token);
        let stops =
            self.is_stop_token(token, eos) && output_tokens > self.stopping.min_tokens as usize;
        if grammar_ends || stops {
            return Some(FinishReason::Stop);
        }
        let full =
            output_tokens >= self.stopping.max_tokens as usize || self.tokens.len() >= tokens_max;
        full.then_some(FinishReason::Length)
    }

    fn is_stop_token(&self, token: u32, eos: &[u32]) -> bool {
        (!self.stopping.ignore_eos && eos.contains(&token))
            || self.stopping.stop_token_ids.contains(&token)
    }

    fn extend_hashes(&mut self, blocks: usize) {
        let block_size = self.hasher.block_size();
        for index in self.hashes.len()..blocks {
            let parent = self.hashes.last().copied().unwrap_or(self.hasher.root());
            let tokens = &self.tokens[index * block_size..(index + 1) * block_size];
            self.hashes.push(self.hasher.block(parent, tokens));
        }
    }
}
