//! Random schedules in pools that are far too small: whatever comes, is preempted, held for readers,
//! reserved or cancelled, each sequence ends within a bound, with the tokens it has alone, and no
//! block is lost.
//!
//! `STATOR_SCHEDULES=n` runs that many, `STATOR_SEED=n` begins at that seed (and runs one).

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod plan;
mod run;

use engine::{
    Engine, EngineConfig, MockRunner, MockTimes, MockVocabulary, SequenceId, SequenceRequest,
};
use protocol::v1::{Sampling, Stopping};

use plan::Plan;
use run::Totals;

/// Schedules of one run where nothing else is said.
const SCHEDULES: u64 = 3000;

/// Few words, so that texts repeat themselves and guesses come true.
const WORDS: u32 = 3;

#[test]
fn every_sequence_ends_in_time_and_no_block_is_lost() {
    let first = number("STATOR_SEED");
    let count = number("STATOR_SCHEDULES").unwrap_or(if first.is_some() { 1 } else { SCHEDULES });
    let mut totals = Totals::default();
    for seed in first.unwrap_or(0)..first.unwrap_or(0) + count {
        let result = std::panic::catch_unwind(|| run::run(&Plan::from_seed(seed)));
        match result {
            Ok(Ok(other)) => totals.add(&other),
            Ok(Err(problem)) => panic!("seed {seed}: {problem}"),
            Err(panic) => {
                eprintln!("again: STATOR_SEED={seed} cargo test -p engine --test schedules");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{totals:?}");
    if count >= SCHEDULES {
        totals.assert_enough();
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}: {value} is not a number")))
}

/// Steps after which a sequence comes first (`OLD_STEPS`), and what one in a test needs by itself.
const OLD_STEPS: usize = 1024;

/// However many of a better priority come, one of a worse one has its turn; and not before.
#[test]
fn no_priority_starves_another() {
    let mut engine = engine(EngineConfig {
        block_size: 4,
        kv_blocks: 16,
        max_num_seqs: 2,
        max_num_batched_tokens: 16,
        waiting_sequences_max: 64,
        speculative_tokens: 0,
        step_target: None,
        shares_memory: false,
    });
    let request = |id: usize, priority| {
        let prompt = (0..8).map(|token| ((id * 7 + token) % 50) as u32).collect();
        request(SequenceId(id as u64), prompt, 8, priority)
    };
    // Both places and the queue are full of others from the start, and stay so.
    let mut others = 1..;
    for id in others.by_ref().take(4) {
        engine.generate(request(id, 0)).unwrap();
    }
    engine.step().unwrap();
    engine.generate(request(0, 1)).unwrap();
    for step in 1.. {
        while engine.load().waiting < 4 {
            engine.generate(request(others.next().unwrap(), 0)).unwrap();
        }
        let output = engine.step().unwrap();
        let mut news = output.sequences.iter().filter(|news| news.id == SequenceId(0));
        let has_begun = news.next().is_some();
        assert!(!has_begun || step >= OLD_STEPS, "it was passed by none after {step} steps");
        if news.chain(&output.sequences).any(|n| n.id == SequenceId(0) && n.finish.is_some()) {
            return;
        }
        assert!(step < OLD_STEPS + 64, "it starves");
    }
}

/// Whether and when requests that come at once, of these priorities, have their first token: in which
/// order.
#[track_caller]
fn check_order(priorities: &[i32], expected: &[u64]) {
    let mut engine = engine(EngineConfig {
        block_size: 4,
        kv_blocks: 64,
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        waiting_sequences_max: 64,
        speculative_tokens: 0,
        step_target: None,
        shares_memory: false,
    });
    for (id, priority) in (0..).zip(priorities) {
        engine.generate(request(SequenceId(id), vec![1; 8], 2, *priority)).unwrap();
    }
    let mut order = Vec::new();
    while engine.load().running + engine.load().waiting > 0 {
        let news = engine.step().unwrap().sequences;
        order.extend(news.iter().filter(|news| news.finish.is_some()).map(|news| news.id.0));
    }
    assert_eq!(order, expected, "{priorities:?}");
}

#[test]
fn lower_values_are_earlier_and_equal_ones_come_as_they_came() {
    check_order(&[0, 0, 0], &[0, 1, 2]);
    check_order(&[1, 0, -1], &[2, 1, 0]);
    check_order(&[5, i32::MIN, i32::MAX, 5, 0], &[1, 4, 0, 3, 2]);
}

/// An engine that takes no time.
fn engine(config: EngineConfig) -> Engine {
    let vocabulary = MockVocabulary {
        vocabulary_size: 64,
        words: (0..WORDS).collect(),
        context_tokens: 4096,
        eos_token_ids: Vec::new(),
    };
    Engine::new(Box::new(MockRunner::new(MockTimes::default(), vocabulary)), config).unwrap()
}

fn request(id: SequenceId, prompt: Vec<u32>, max_tokens: u32, priority: i32) -> SequenceRequest {
    SequenceRequest {
        id,
        prompt,
        generated: Vec::new(),
        sampling: Sampling::default(),
        stopping: Stopping { max_tokens, ..Default::default() },
        cache_salt: String::new(),
        grammar: None,
        prompt_logprobs: None,
        priority,
    }
}
