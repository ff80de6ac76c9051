//! The same of GGUF files made of the fixtures.

use std::path::PathBuf;

use gguf::TensorType;
use gguf::test_support::{Conversion, convert};

use super::*;

/// A GGUF file of a fixture, gone when dropped.
struct Made(PathBuf);

impl Made {
    fn of(name: &str, matrices: TensorType, dequantized: bool) -> Self {
        Self::mixed(name, matrices, dequantized, |_| true)
    }

    /// Matrices that are not `chosen` by their names are F32.
    fn mixed(
        name: &str,
        kind: TensorType,
        dequantized: bool,
        chosen: impl Fn(&str) -> bool,
    ) -> Self {
        let matrices = |name: &str| if chosen(name) { kind } else { TensorType::F32 };
        let conversion = Conversion { matrices: &matrices, pre: "stator-demo", dequantized };
        let file = convert(&fixture(name), &conversion).finish();
        let thread = std::thread::current().id();
        let name = name.rsplit('/').next().unwrap();
        let path = format!("{name}-{kind}-{dequantized}-{}-{thread:?}.gguf", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(path);
        std::fs::write(&path, file).unwrap();
        Self(path)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // What is left behind lies in the build's own folder.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How the matrices of a fixture are stored.
fn stored(name: &str) -> TensorType {
    match name {
        _ if BF16.contains(&name) => TensorType::BF16,
        _ if F16.contains(&name) => TensorType::F16,
        _ => TensorType::F32,
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for name in fixtures() {
        let file = Made::of(name, stored(name), false);
        for path in paths(name) {
            let largest = largest_error(&mut engine(&file.0, path, ROOMY), name);
            assert!(largest <= 1.0, "{name} on {path}: {largest} of what is allowed");
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in F32 {
        let file = Made::of(name, TensorType::F32, false);
        let mut engine = engine(&file.0, KernelPath::detect(), ROOMY);
        for case in &expected(name) {
            engine.generate(request(0, case, None)).unwrap();
            let found = ids(&run(&mut engine).0[&0]);
            assert_eq!(found, case.greedy, "{name}, prompt of {}", case.prompt.len());
        }
    }
}

/// Rows of queries and keys are in another order in Llamas; the others compute the same bits.
#[test]
fn qwens_compute_what_the_directory_computes() {
    for name in fixtures().filter(|name| name.starts_with("qwen")) {
        let file = Made::of(name, stored(name), false);
        let case = &expected(name)[4];
        for path in paths(name) {
            let mut answers = [fixture(name), file.0.clone()].map(|model| {
                let mut engine = engine(&model, path, ROOMY);
                engine.generate(request(0, case, Some(20))).unwrap();
                run(&mut engine).0
            });
            let [directory, file] = &mut answers;
            assert!(directory == file, "{name} on {path}");
        }
    }
}

#[test]
fn neither_company_nor_chunks_nor_preemption_change_anything() {
    for name in ["llama3-rope-scaled", "mistral-window"] {
        let file = Made::of(name, stored(name), false);
        check_invariance(&file.0, KernelPath::Portable, &expected(name));
    }
}

/// Quantised weights compute what the numbers compute that they stand for. Activations are rounded to
/// 8 bits for the products, and KV to f16: hence the bounds, as shares of the range of logits. Random
/// weights amplify what is rounded; trained ones do not.
#[test]
fn quantised_logits_are_those_of_the_dequantised_model() {
    let small = [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q5_0];
    for kind in small.into_iter().chain([TensorType::Q4_K, TensorType::Q6_K]) {
        check_quantised("../../../models/demo", kind, 1.5e-2);
    }
    for name in ["llama3-rope-scaled", "llama3-tied", "qwen3-tied", "qwen2-bias"] {
        small.into_iter().for_each(|kind| check_quantised(name, kind, 6e-2));
    }
}

fn check_quantised(name: &str, kind: TensorType, allowed: f32) {
    let (quantized, plain) = (Made::of(name, kind, false), Made::of(name, kind, true));
    let expected = last_logits(&plain.0, KernelPath::Portable);
    let range = expected.iter().fold(0.0f32, |range, logit| range.max(-logit));
    for path in [KernelPath::Portable, KernelPath::detect()] {
        let found = last_logits(&quantized.0, path);
        let errors = found.iter().zip(&expected).map(|(ours, theirs)| (ours - theirs).abs());
        let largest = errors.fold(0.0f32, f32::max) / range;
        assert!(largest <= allowed, "{name} in {kind} on {path}: {largest} of the range");
        assert!(largest > 0.0, "{name} in {kind} on {path}: not quantised");
    }
}

/// The logits after some tokens, less the largest.
fn last_logits(model: &Path, path: KernelPath) -> Vec<f32> {
    let vocabulary = Model::load(model, path).unwrap().config.vocabulary_size;
    let prompt = (0..120).map(|at| (at * at * 7 + at) % vocabulary as u32).collect();
    let case = Case { prompt, greedy: vec![0] };
    logits(&mut engine(model, path, ROOMY), &case, vocabulary)
}

/// Rows of an embedding are only read: to the bit, they are the numbers that they stand for.
#[test]
fn quantised_embeddings_are_what_they_stand_for() {
    for kind in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q5_0] {
        let [quantized, plain] = [false, true].map(|dequantized| {
            let chosen = |name: &str| name == "token_embd.weight";
            let file = Made::mixed("llama3-rope-scaled", kind, dequantized, chosen);
            last_logits(&file.0, KernelPath::Portable)
        });
        assert!(quantized == plain, "{kind}");
    }
}
