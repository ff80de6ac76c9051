//! What happens in one random mix of requests, all of it a function of a seed.

use std::time::Duration;

use engine::{EngineConfig, SequenceId, SequenceRequest};
use grammar::Grammar;
use protocol::v1::{LogitBias, Sampling, Stopping};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One of these in a scenario: among prompts of one size, blocks run out more often.
const PROMPT_TOKENS_MAX: [usize; 3] = [30, 90, 220];
const OUTPUT_TOKENS_MAX: u32 = 40;
const REQUESTS_MAX: usize = 12;
const BATCHED_TOKENS_MAX: f64 = 600.0;
/// For any request in blocks of any size.
const ROOMY_BLOCKS: usize = 64;
/// Ids of requests that came before begin here.
const EARLIER_IDS: u64 = 1000;

/// One mix, and the engines that compute it.
#[derive(Debug)]
pub struct Scenario {
    pub seed: u64,
    /// Takes all requests.
    pub local: Sizes,
    /// Computes prompts for it.
    pub remote: Sizes,
    /// Computes each request alone, to compare with.
    pub alone: Sizes,
    /// What the local and the remote engine computed before: their caches are warm.
    pub earlier: [Vec<SequenceRequest>; 2],
    /// The id of a request is its index.
    pub arrivals: Vec<Arrival>,
}

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub config: EngineConfig,
    pub threads: usize,
}

/// A request, and what becomes of it.
#[derive(Debug)]
pub struct Arrival {
    pub request: SequenceRequest,
    pub tick: usize,
    /// It begins anew with the tokens that are there, if it is not done by then.
    pub migrates_at: Option<usize>,
    /// Its client goes away, if it is not done by then.
    pub cancelled_at: Option<usize>,
    /// Whether its prompt is to be computed remotely.
    pub handoff: Option<HandoffPlan>,
}

/// How a handoff goes.
#[derive(Clone, Copy, Debug)]
pub struct HandoffPlan {
    /// The transfer fails once so many blocks were read, and at the latest when all were.
    pub fails_after_blocks: Option<usize>,
}

impl Scenario {
    pub fn new(seed: u64, vocabulary_size: usize, grammars: &[Grammar]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let vocabulary_size = vocabulary_size as u32;
        let prompt_tokens_max = PROMPT_TOKENS_MAX[rng.random_range(0..PROMPT_TOKENS_MAX.len())];
        let block_size = block_size(&mut rng);
        let generator = Generator { rng, vocabulary_size, grammars, prompt_tokens_max, block_size };
        generator.scenario(seed)
    }
}

struct Generator<'a> {
    rng: StdRng,
    vocabulary_size: u32,
    grammars: &'a [Grammar],
    prompt_tokens_max: usize,
    /// Of the engines that share KV.
    block_size: usize,
}

impl Generator<'_> {
    fn scenario(mut self, seed: u64) -> Scenario {
        let count = self.rng.random_range(1..=REQUESTS_MAX);
        let requests = self.requests(count);
        let earlier = [self.earlier(&requests), self.earlier(&requests)];
        let all = || requests.iter().chain(earlier.iter().flatten());
        let whole =
            |request: &SequenceRequest| request.prompt.len() + request.stopping.max_tokens as usize;
        let whole_max = all().map(whole).max().unwrap_or(1);
        let local = self.sizes(whole_max);
        let remote = self.sizes(whole_max);
        let mut alone = self.sizes(whole_max);
        alone.config.block_size = block_size(&mut self.rng);
        alone.config.kv_blocks = ROOMY_BLOCKS;
        alone.config.speculative_tokens = 0;
        let arrivals = requests.into_iter().map(|request| self.arrival(request));
        let arrivals = arrivals.collect();
        Scenario { seed, local, remote, alone, earlier, arrivals }
    }

    /// Some equal to an earlier one, some with one prefix in common, some with equal blocks after
    /// unequal ones.
    fn requests(&mut self, count: usize) -> Vec<SequenceRequest> {
        let shared_len = self.rng.random_range(1..self.prompt_tokens_max);
        let shared = self.tokens(shared_len);
        let blocks = [self.tokens(self.block_size), self.tokens(self.block_size)];
        let mut requests: Vec<SequenceRequest> = Vec::new();
        for id in 0..count as u64 {
            let prompt = match self.rng.random_range(0..10) {
                0..2 if id > 0 => requests[self.rng.random_range(0..id as usize)].prompt.clone(),
                2..4 => self.prompt_after(&shared),
                4..7 => {
                    let prefix = self.random_order(&blocks);
                    self.prompt_after(&prefix)
                }
                _ => self.prompt_after(&[]),
            };
            requests.push(self.request(id, prompt));
        }
        requests
    }

    /// Prompts of the scenario's own, or parts of them, or others.
    fn earlier(&mut self, requests: &[SequenceRequest]) -> Vec<SequenceRequest> {
        let count = if self.rng.random() { self.rng.random_range(1..4) } else { 0 };
        let mut earlier = Vec::new();
        for id in 0..count {
            let request = &requests[self.rng.random_range(0..requests.len())];
            let part = self.rng.random_range(0..=request.prompt.len());
            let prompt = match self.rng.random_range(0..3) {
                0 => request.prompt.clone(),
                1 => self.prompt_after(&request.prompt[..part]),
                _ => self.prompt_after(&[]),
            };
            earlier.push(self.request(EARLIER_IDS + id, prompt));
        }
        earlier
    }

    /// These blocks in any order, as many as a prompt may have.
    fn random_order(&mut self, blocks: &[Vec<u32>; 2]) -> Vec<u32> {
        let count = self.prompt_tokens_max / self.block_size;
        (0..count).flat_map(|_| blocks[self.rng.random_range(0..2)].clone()).collect()
    }

    /// A part of `prefix`, and other tokens.
    fn prompt_after(&mut self, prefix: &[u32]) -> Vec<u32> {
        let part_max = prefix.len().min(self.prompt_tokens_max - 1);
        let mut prompt = prefix[..self.rng.random_range(0..=part_max)].to_vec();
        let rest = self.prompt_tokens_max - prompt.len();
        let most = if self.rng.random() { rest.min(20) } else { rest };
        let count = self.rng.random_range(1..=most);
        prompt.extend(self.tokens(count));
        prompt
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.rng.random_range(0..self.vocabulary_size)).collect()
    }

    fn request(&mut self, id: u64, prompt: Vec<u32>) -> SequenceRequest {
        let salt = ["", "", "", "a"][self.rng.random_range(0..4)];
        SequenceRequest {
            id: SequenceId(id),
            prompt,
            generated: Vec::new(),
            sampling: self.sampling(),
            stopping: self.stopping(),
            cache_salt: salt.to_string(),
            grammar: self.grammar(),
            prompt_logprobs: self.rng.random_bool(0.15).then(|| self.rng.random_range(0..3)),
            priority: self.sometimes(|rng| rng.random_range(-2..3)).unwrap_or(0),
        }
    }

    fn grammar(&mut self) -> Option<Grammar> {
        let has_one = !self.grammars.is_empty() && self.rng.random_bool(0.3);
        has_one.then(|| self.grammars[self.rng.random_range(0..self.grammars.len())].clone())
    }

    fn sampling(&mut self) -> Sampling {
        let bias = |rng: &mut StdRng, vocabulary| LogitBias {
            token: rng.random_range(0..vocabulary),
            bias: rng.random_range(-5.0..5.0),
        };
        let biases = self.sometimes(|rng| rng.random_range(1..4)).unwrap_or(0);
        Sampling {
            temperature: self.mostly(|rng| rng.random_range(0.2..1.5)).unwrap_or(0.0),
            top_p: self.sometimes(|rng| rng.random_range(0.0..1.0)).unwrap_or(1.0),
            top_k: self.sometimes(|rng| rng.random_range(1..50)).unwrap_or(0),
            min_p: self.sometimes(|rng| rng.random_range(0.0..0.2)).unwrap_or(0.0),
            presence_penalty: self.sometimes(|rng| rng.random_range(-2.0..2.0)).unwrap_or(0.0),
            frequency_penalty: self.sometimes(|rng| rng.random_range(-2.0..2.0)).unwrap_or(0.0),
            repetition_penalty: self.sometimes(|rng| rng.random_range(0.7..1.6)).unwrap_or(1.0),
            logit_bias: (0..biases).map(|_| bias(&mut self.rng, self.vocabulary_size)).collect(),
            seed: self.rng.random(),
            choice: self.rng.random_range(0..3),
            logprobs: [None, Some(0), Some(3)][self.rng.random_range(0..3)],
        }
    }

    fn stopping(&mut self) -> Stopping {
        let all = self.rng.random_range(1..=OUTPUT_TOKENS_MAX);
        let max_tokens = if self.rng.random_bool(0.05) { 1 } else { all };
        let stop_tokens = self.sometimes(|rng| rng.random_range(1..12)).unwrap_or(0);
        Stopping {
            max_tokens,
            min_tokens: self.sometimes(|rng| rng.random_range(0..=max_tokens)).unwrap_or(0),
            ignore_eos: self.rng.random(),
            stop_token_ids: self.tokens(stop_tokens),
        }
    }

    fn sometimes<T>(&mut self, value: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
        self.rng.random_bool(0.3).then(|| value(&mut self.rng))
    }

    fn mostly<T>(&mut self, value: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
        self.rng.random_bool(0.7).then(|| value(&mut self.rng))
    }

    /// Room for one sequence of `tokens` tokens, and sometimes hardly more.
    fn sizes(&mut self, tokens: usize) -> Sizes {
        let blocks_min = tokens.div_ceil(self.block_size);
        let more = if self.rng.random_bool(0.7) { 3 } else { blocks_min * REQUESTS_MAX };
        let config = EngineConfig {
            block_size: self.block_size,
            kv_blocks: blocks_min + self.rng.random_range(0..more),
            max_num_seqs: self.rng.random_range(1..=REQUESTS_MAX),
            // As many around 5 as around 50 and 500.
            max_num_batched_tokens: BATCHED_TOKENS_MAX.powf(self.rng.random_range(0.0..=1.0))
                as usize,
            waiting_sequences_max: 64,
            speculative_tokens: self.mostly(|rng| rng.random_range(1..10)).unwrap_or(0),
            step_target: self.sometimes(|rng| Duration::from_micros(rng.random_range(1..500))),
            shares_memory: false,
        };
        Sizes { config, threads: self.rng.random_range(1..=2) }
    }

    fn arrival(&mut self, request: SequenceRequest) -> Arrival {
        let within = if self.rng.random() { 2 } else { 40 };
        let tick = self.rng.random_range(0..within);
        let blocks = request.prompt.len().div_ceil(self.block_size);
        let fails_after_blocks = self.sometimes(|rng| rng.random_range(0..=blocks));
        let plan = HandoffPlan { fails_after_blocks };
        let reported = request.prompt_logprobs;
        Arrival {
            request,
            tick,
            migrates_at: self.rng.random_bool(0.3).then(|| tick + self.rng.random_range(1..30)),
            cancelled_at: self.rng.random_bool(0.15).then(|| tick + self.rng.random_range(0..20)),
            // A gateway has a prompt that is reported on computed where it is decoded.
            handoff: (reported.is_none() && self.rng.random_bool(0.7)).then_some(plan),
        }
    }
}

fn block_size(rng: &mut StdRng) -> usize {
    [8, 8, 16, 32][rng.random_range(0..4)]
}
