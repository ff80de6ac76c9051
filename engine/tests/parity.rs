//! Greedy tokens and logits equal those of Hugging Face transformers (`fixtures/README.md`).

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{Compute, Engine, EngineConfig, KernelPath, Model, SequenceId, SequenceRequest};
use protocol::v1::{Sampling, Stopping};
use serde::Deserialize;

const FIXTURES: [&str; 4] =
    ["qwen3-tied", "qwen3-untied-sharded", "llama3-rope-scaled", "llama3-tied"];
const PROMPT_TOKENS: [usize; 5] = [1, 15, 16, 17, 300];

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn expected(name: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn engine(name: &str, max_num_batched_tokens: usize) -> Engine {
    engine_with_blocks(name, max_num_batched_tokens, 256)
}

fn engine_with_blocks(name: &str, max_num_batched_tokens: usize, kv_blocks: usize) -> Engine {
    let path = KernelPath::detect();
    let model = Arc::new(Model::load(&fixture(name), path).unwrap());
    let config = EngineConfig {
        block_size: 16,
        kv_blocks,
        max_num_seqs: 8,
        max_num_batched_tokens,
        waiting_sequences_max: 64,
    };
    Engine::new(model, Arc::new(Compute::new(2, path).unwrap()), config).unwrap()
}

/// Greedy, to the length of `greedy`; with as many logprobs as there are tokens.
fn request(id: u64, case: &Case, logprobs: Option<u32>) -> SequenceRequest {
    SequenceRequest {
        id: SequenceId(id),
        prompt: case.prompt.clone(),
        sampling: Sampling { repetition_penalty: 1.0, top_p: 1.0, logprobs, ..Default::default() },
        stopping: Stopping {
            max_tokens: case.greedy.len() as u32,
            ignore_eos: true,
            ..Default::default()
        },
        cache_salt: String::new(),
    }
}

/// Steps until nothing is left to compute, and returns the tokens by sequence.
fn run(engine: &mut Engine) -> BTreeMap<u64, Vec<protocol::v1::Token>> {
    let mut tokens = BTreeMap::<u64, Vec<_>>::new();
    loop {
        let output = engine.step();
        if output.is_idle() {
            break;
        }
        for news in output.sequences {
            tokens.entry(news.id.0).or_default().extend(news.token);
        }
    }
    assert_eq!(engine.load().blocks.used, 0);
    tokens
}

fn ids(tokens: &[protocol::v1::Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in FIXTURES {
        let cases = expected(name);
        let lengths: Vec<usize> = cases.iter().map(|case| case.prompt.len()).collect();
        assert_eq!(lengths, PROMPT_TOKENS, "{name}");
        let mut engine = engine(name, 128);
        for case in &cases {
            assert_eq!(case.greedy.len(), 64, "{name}");
            engine.generate(request(0, case, None)).unwrap();
            let found = ids(&run(&mut engine)[&0]);
            assert_eq!(found, case.greedy, "{name}, prompt of {}", case.prompt.len());
        }
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for name in FIXTURES {
        let file = std::fs::read(fixture(name).join("first_logits.safetensors")).unwrap();
        let stored = safetensors::SafeTensors::deserialize(&file).unwrap();
        for case in expected(name) {
            let tensor = stored.tensor(&format!("prompt_{}", case.prompt.len())).unwrap();
            let floats = tensor.data().as_chunks::<4>().0.iter();
            let logits: Vec<f32> = floats.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let mut engine = engine(name, 512);
            let all = Some(logits.len() as u32);
            engine.generate(request(0, &case, all)).unwrap();
            let first = &run(&mut engine)[&0][0];
            // Logprobs are logits shifted by a constant: compare differences to the best one.
            let best = first.top_logprobs[0];
            assert_eq!(first.top_logprobs.len(), logits.len());
            for top in &first.top_logprobs {
                let ours = top.logprob - best.logprob;
                let theirs = logits[top.id as usize] - logits[best.id as usize];
                assert!((ours - theirs).abs() <= 1e-3, "{name}: {ours} instead of {theirs}");
            }
        }
    }
}

#[test]
fn company_and_chunking_change_nothing() {
    for name in FIXTURES {
        let cases = expected(name);
        for budget in [7, 64, 1024] {
            let mut engine = engine(name, budget);
            for (id, case) in cases.iter().enumerate() {
                engine.generate(request(id as u64, case, None)).unwrap();
            }
            for (id, tokens) in run(&mut engine) {
                assert_eq!(ids(&tokens), cases[id as usize].greedy, "{name}, budget {budget}");
            }
        }
    }
}

#[test]
fn preemption_changes_nothing() {
    for name in FIXTURES {
        let cases = expected(name);
        // All five need 47 blocks at their ends.
        let mut engine = engine_with_blocks(name, 512, 30);
        for (id, case) in cases.iter().enumerate() {
            engine.generate(request(id as u64, case, None)).unwrap();
        }
        let mut tokens = BTreeMap::<u64, Vec<u32>>::new();
        let mut prefill_tokens = 0;
        loop {
            let output = engine.step();
            if output.is_idle() {
                break;
            }
            prefill_tokens += output.prefill_tokens;
            let news = output.sequences.into_iter();
            news.for_each(|news| {
                tokens.entry(news.id.0).or_default().extend(news.token.map(|token| token.id));
            });
        }
        let prompts: usize = PROMPT_TOKENS.iter().sum();
        assert!(prefill_tokens > prompts, "{name}: something was preempted and computed again");
        for (id, tokens) in tokens {
            assert_eq!(tokens, cases[id as usize].greedy, "{name}");
        }
    }
}
