//! Greedy tokens and logits equal those of Hugging Face transformers (`fixtures/README.md`).

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "candle")]
mod candle;
mod cuda;
mod gguf_files;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{
    Compute, CpuRunner, Engine, EngineConfig, KernelPath, Model, Numerics, Runner, SequenceId,
    SequenceRequest,
};
use protocol::v1::{Sampling, Stopping};
use safetensors::SafeTensors;
use serde::Deserialize;

/// Checkpoints in f32: transformers' tokens, and its logits within 1e-3.
const F32: [&str; 7] = [
    "qwen3-tied",
    "qwen3-untied-sharded",
    "llama3-rope-scaled",
    "llama3-tied",
    "llama-linear-biased",
    "mistral-window",
    "qwen2-mixed-windows",
];
/// Checkpoints in bf16, which KV and, on one kernel path, activations are rounded to: logits
/// within 2e-2 of their range.
const BF16: [&str; 2] = ["qwen2-bias", "qwen3-biased-windows"];
/// Checkpoints in f16, which KV is rounded to: the same bound.
const F16: [&str; 1] = ["llama2"];
const PROMPT_TOKENS: [usize; 6] = [1, 15, 16, 17, 200, 1500];

fn fixtures() -> impl Iterator<Item = &'static str> {
    F32.into_iter().chain(BF16).chain(F16)
}

/// The kernel paths of this CPU that differ on a fixture: there are several for bf16 alone.
fn paths(name: &str) -> Vec<KernelPath> {
    if !BF16.contains(&name) {
        return vec![KernelPath::Portable];
    }
    let (available, others): (Vec<_>, Vec<_>) =
        KernelPath::ALL.into_iter().partition(|path| path.is_available());
    for path in others {
        // Not by `println!`, which is shown for failed tests alone.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "this CPU has no {path} kernels: not tested").unwrap();
    }
    available
}

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
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    let lengths: Vec<usize> = cases.iter().map(|case| case.prompt.len()).collect();
    assert_eq!(lengths, PROMPT_TOKENS, "{name}");
    assert!(cases.iter().all(|case| case.greedy.len() == 64), "{name}");
    cases
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
    let compute = Arc::new(Compute::new(sizes.threads, path).unwrap());
    engine_of(Box::new(CpuRunner::new(model, compute)), sizes)
}

fn engine_of(runner: Box<dyn Runner>, sizes: Sizes) -> Engine {
    let config = EngineConfig {
        block_size: 16,
        kv_blocks: sizes.kv_blocks,
        max_num_seqs: 8,
        max_num_batched_tokens: sizes.max_num_batched_tokens,
        waiting_sequences_max: 64,
        speculative_tokens: 0,
        step_target: None,
        shares_memory: false,
    };
    Engine::new(runner, config).unwrap()
}

/// Greedy, to the length of `greedy`; with as many logprobs as there are tokens.
fn request(id: u64, case: &Case, logprobs: Option<u32>) -> SequenceRequest {
    SequenceRequest {
        id: SequenceId(id),
        prompt: case.prompt.clone(),
        generated: Vec::new(),
        sampling: Sampling { repetition_penalty: 1.0, top_p: 1.0, logprobs, ..Default::default() },
        stopping: Stopping {
            max_tokens: case.greedy.len() as u32,
            ignore_eos: true,
            ..Default::default()
        },
        cache_salt: String::new(),
        grammar: None,
        prompt_logprobs: None,
        priority: 0,
    }
}

type Tokens = BTreeMap<u64, Vec<protocol::v1::Token>>;

/// Steps until nothing is left to compute. Returns the tokens by sequence, and how many tokens of
/// prompts were computed.
fn run(engine: &mut Engine) -> (Tokens, usize) {
    let (mut tokens, mut prefill_tokens) = (Tokens::new(), 0);
    loop {
        let output = engine.step().unwrap();
        if output.is_idle() {
            break;
        }
        prefill_tokens += output.prefill_tokens;
        for news in output.sequences {
            tokens.entry(news.id.0).or_default().extend(news.tokens);
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
    for name in F32 {
        let sizes = Sizes { max_num_batched_tokens: 128, ..ROOMY };
        let mut engine = engine(&fixture(name), KernelPath::detect(), sizes);
        for case in &expected(name) {
            engine.generate(request(0, case, None)).unwrap();
            let found = ids(&run(&mut engine).0[&0]);
            assert_eq!(found, case.greedy, "{name}, prompt of {}", case.prompt.len());
        }
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for name in fixtures() {
        for path in paths(name) {
            let mut engine = engine(&fixture(name), path, ROOMY);
            let largest = largest_error(&mut engine, name);
            assert!(largest <= 1.0, "{name} on {path}: {largest} of what is allowed");
        }
    }
}

/// The largest difference to the logits of transformers, over what is allowed: after each prompt,
/// and after its greedy tokens but the last.
fn largest_error(engine: &mut Engine, name: &str) -> f32 {
    let mut largest: f32 = 0.0;
    for (file, given) in [("first_logits", 0), ("last_logits", 63)] {
        let file = std::fs::read(fixture(name).join(format!("{file}.safetensors"))).unwrap();
        let stored = SafeTensors::deserialize(&file).unwrap();
        for mut case in expected(name) {
            let tensor = stored.tensor(&format!("prompt_{}", case.prompt.len())).unwrap();
            let theirs = floats(tensor.data());
            case.prompt.extend(case.greedy.drain(..given));
            case.greedy.truncate(1);
            let ours = logits(engine, &case, theirs.len());
            let max = theirs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let range = max - theirs.iter().copied().fold(f32::INFINITY, f32::min);
            let allowed = if F32.contains(&name) { 1e-3 } else { 2e-2 * range };
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let error = (ours - (theirs - max)).abs() / allowed;
                assert!(error.is_finite(), "{name}: {ours} instead of {theirs}");
                largest = largest.max(error);
            }
        }
    }
    largest
}

/// The logits of all tokens after a case's prompt, less the largest.
fn logits(engine: &mut Engine, case: &Case, vocabulary: usize) -> Vec<f32> {
    engine.generate(request(0, case, Some(vocabulary as u32))).unwrap();
    let top = run(engine).0.remove(&0).unwrap().remove(0).top_logprobs;
    assert_eq!(top.len(), vocabulary);
    // Logprobs are logits shifted by a constant.
    let mut logits = vec![f32::NAN; vocabulary];
    for token in &top {
        logits[token.id as usize] = token.logprob - top[0].logprob;
    }
    logits
}

/// Company, chunks, threads and preemption change neither tokens nor logprobs by a bit.
fn check_invariance(directory: &Path, path: KernelPath, cases: &[Case]) {
    let build = |sizes| engine(directory, path, sizes);
    check_invariance_of(&build, &format!("{} on {path}", directory.display()), cases);
}

fn check_invariance_of(build: &dyn Fn(Sizes) -> Engine, what: &str, cases: &[Case]) {
    let mut alone = Tokens::new();
    for (id, case) in cases.iter().enumerate() {
        let mut engine = build(ROOMY);
        engine.generate(request(id as u64, case, Some(3))).unwrap();
        alone.extend(run(&mut engine).0);
    }
    let all = cases.len();
    // Together, the shorter sequences need 37 blocks at their ends and all need 135. With a few
    // less there is room for all to begin, and not for all to end.
    let mixes = [
        (all - 1, 7, 256, 2),
        (all - 1, 64, 256, 1),
        (all - 1, 1024, 256, 2),
        (all - 1, 512, 34, 2),
        (all, 333, 131, 2),
    ];
    for (count, max_num_batched_tokens, kv_blocks, threads) in mixes {
        let sizes = Sizes { max_num_batched_tokens, kv_blocks, threads };
        let mut engine = build(sizes);
        for (id, case) in cases[..count].iter().enumerate() {
            engine.generate(request(id as u64, case, Some(3))).unwrap();
        }
        let (together, prefill_tokens) = run(&mut engine);
        assert_eq!(together.len(), count);
        for (id, tokens) in together {
            assert!(tokens == alone[&id], "{what}, {sizes:?}");
        }
        let prompts: usize = cases[..count].iter().map(|case| case.prompt.len()).sum();
        assert_eq!(prefill_tokens > prompts, kv_blocks < 256, "preempted where blocks are few");
    }
}

#[test]
fn neither_company_nor_chunks_nor_preemption_change_anything() {
    for name in fixtures() {
        let cases = expected(name);
        for path in paths(name) {
            check_invariance(&fixture(name), path, &cases);
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The numbers in the blocks of a prompt; the last one's are zeros where it is not full.
fn kv_of(engine: &mut Engine, case: &Case) -> Vec<f32> {
    let request = request(7, case, None);
    engine.prefill(request).unwrap();
    let mut blocks = Vec::new();
    while engine.load().running + engine.load().waiting > 0 {
        blocks.extend(
            engine.step().unwrap().sequences.into_iter().flat_map(|news| news.ready_blocks),
        );
    }
    assert_eq!(blocks.len(), case.prompt.len().div_ceil(16));
    let layout = engine.layout().clone();
    let number = |bytes: &[u8]| match bytes {
        &[a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        bytes => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
    };
    let numbers = blocks.iter().flat_map(|block| {
        // SAFETY: the engine is not in a step, and holds the blocks until they are released.
        let bytes = unsafe { engine.memory().bytes_of(*block, 1) }.unwrap();
        bytes.chunks_exact(layout.element_bytes).map(number).collect::<Vec<f32>>()
    });
    let numbers = numbers.collect();
    engine.release(SequenceId(7));
    numbers
}

/// Logits of fixtures by engines that `build` makes.
fn check_logits<'a>(
    names: impl Iterator<Item = &'a str>,
    build: &dyn Fn(&str, Numerics) -> Engine,
) {
    for name in names {
        for numerics in [Numerics::Fixed, Numerics::Fast] {
            let largest = largest_error(&mut build(name, numerics), name);
            assert!(largest <= 1.0, "{name}, {numerics:?}: {largest} of what is allowed");
        }
    }
}

/// Blocks hold the same numbers in the same places as those of our kernels for the CPU.
fn check_kv(build: &dyn Fn(&str) -> Engine) {
    for (name, tolerance) in [("qwen3-tied", 1e-4), ("qwen2-mixed-windows", 1e-4), ("llama2", 2e-2)]
    {
        let case = &expected(name)[4];
        let ours = kv_of(&mut engine(&fixture(name), KernelPath::Portable, ROOMY), case);
        let theirs = kv_of(&mut build(name), case);
        assert_eq!(ours.len(), theirs.len());
        let largest = ours.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
        assert!(largest > 0.1, "{name}: there is something in them");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let error = (ours - theirs).abs() / largest;
            assert!(error <= tolerance, "{name}: {theirs} for {ours}, the largest is {largest}");
        }
    }
}
