//! Greedy tokens and logits equal those of Hugging Face transformers (`fixtures/README.md`).

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{
    Compute, CpuRunner, Engine, EngineConfig, KernelPath, Model, SequenceId, SequenceRequest,
};
use protocol::v1::{Sampling, Stopping};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
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

/// Sizes of an engine under test.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    max_num_batched_tokens: usize,
    kv_blocks: usize,
    threads: usize,
}

const ROOMY: Sizes = Sizes { max_num_batched_tokens: 512, kv_blocks: 256, threads: 2 };

fn engine(directory: &Path, path: KernelPath, sizes: Sizes) -> Engine {
    let model = Arc::new(Model::load(directory, path).unwrap());
    let config = EngineConfig {
        block_size: 16,
        kv_blocks: sizes.kv_blocks,
        max_num_seqs: 8,
        max_num_batched_tokens: sizes.max_num_batched_tokens,
        waiting_sequences_max: 64,
    };
    let compute = Arc::new(Compute::new(sizes.threads, path).unwrap());
    Engine::new(Box::new(CpuRunner::new(model, compute)), config).unwrap()
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

type Tokens = BTreeMap<u64, Vec<protocol::v1::Token>>;

/// Steps until nothing is left to compute. Returns the tokens by sequence, and how many tokens of
/// prompts were computed.
fn run(engine: &mut Engine) -> (Tokens, usize) {
    let (mut tokens, mut prefill_tokens) = (Tokens::new(), 0);
    loop {
        let output = engine.step();
        if output.is_idle() {
            break;
        }
        prefill_tokens += output.prefill_tokens;
        for news in output.sequences {
            tokens.entry(news.id.0).or_default().extend(news.token);
        }
    }
    assert_eq!(engine.load().blocks.used, 0);
    (tokens, prefill_tokens)
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
        let sizes = Sizes { max_num_batched_tokens: 128, ..ROOMY };
        let mut engine = engine(&fixture(name), KernelPath::detect(), sizes);
        for case in &cases {
            assert_eq!(case.greedy.len(), 64, "{name}");
            engine.generate(request(0, case, None)).unwrap();
            let found = ids(&run(&mut engine).0[&0]);
            assert_eq!(found, case.greedy, "{name}, prompt of {}", case.prompt.len());
        }
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for name in FIXTURES {
        let file = std::fs::read(fixture(name).join("first_logits.safetensors")).unwrap();
        let stored = SafeTensors::deserialize(&file).unwrap();
        for case in expected(name) {
            let tensor = stored.tensor(&format!("prompt_{}", case.prompt.len())).unwrap();
            let logits = floats(tensor.data());
            let mut engine = engine(&fixture(name), KernelPath::detect(), ROOMY);
            let all = Some(logits.len() as u32);
            engine.generate(request(0, &case, all)).unwrap();
            let first = &run(&mut engine).0[&0][0];
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

/// Company, chunks, threads and preemption change neither tokens nor logprobs by a bit.
fn check_invariance(directory: &Path, path: KernelPath, cases: &[Case]) {
    let mut alone = Tokens::new();
    for (id, case) in cases.iter().enumerate() {
        let mut engine = engine(directory, path, ROOMY);
        engine.generate(request(id as u64, case, Some(3))).unwrap();
        alone.extend(run(&mut engine).0);
    }
    let prompts: usize = cases.iter().map(|case| case.prompt.len()).sum();
    // Together, the sequences need 47 blocks at their ends: 30 are too few.
    let mixes = [(7, 256, 2), (64, 256, 1), (1024, 256, 2), (512, 30, 2)];
    for (max_num_batched_tokens, kv_blocks, threads) in mixes {
        let sizes = Sizes { max_num_batched_tokens, kv_blocks, threads };
        let mut engine = engine(directory, path, sizes);
        for (id, case) in cases.iter().enumerate() {
            engine.generate(request(id as u64, case, Some(3))).unwrap();
        }
        let (together, prefill_tokens) = run(&mut engine);
        assert!(together == alone, "{} on {path}, {sizes:?}", directory.display());
        assert_eq!(prefill_tokens > prompts, kv_blocks == 30, "preempted where blocks are few");
    }
}

#[test]
fn neither_company_nor_chunks_nor_preemption_change_anything() {
    for name in FIXTURES {
        check_invariance(&fixture(name), KernelPath::Portable, &expected(name));
    }
}

/// The same on each kernel path this CPU has for bf16, with the fixture's weights cut to bf16.
#[test]
fn nor_with_bf16_weights_on_any_kernel_path() {
    let mut paths = vec![KernelPath::Portable];
    match KernelPath::detect() {
        KernelPath::Portable => println!("this CPU has no avx512-bf16 kernels: path not tested"),
        other => paths.push(other),
    }
    for name in ["qwen3-tied", "llama3-rope-scaled"] {
        let directory = bf16_copy(name);
        for path in &paths {
            check_invariance(&directory, *path, &expected(name));
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A copy of a fixture with its weights in bf16.
fn bf16_copy(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("stator-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(fixture(name).join("config.json"), directory.join("config.json")).unwrap();
    let file = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&file).unwrap();
    let narrow = |value: f32| half::bf16::from_f32(value).to_le_bytes();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .iter()
        .map(|(name, view)| {
            let bytes = floats(view.data()).into_iter().flat_map(narrow).collect();
            (name.to_string(), view.shape().to_vec(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).unwrap();
    directory
}
