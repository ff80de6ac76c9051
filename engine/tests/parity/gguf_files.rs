//! The same of GGUF files made of the fixtures.

use std::path::PathBuf;

use gguf::TensorType;
use gguf::test_support::{Conversion, convert};

use super::*;

/// A GGUF file of a fixture, gone when dropped.
struct Made(PathBuf);

impl Made {
    fn of(name: &str, matrices: TensorType, dequantized: bool) -> Self {
        let conversion = Conversion { matrices: &|_| matrices, pre: "default", dequantized };
        let file = convert(&fixture(name), &conversion).finish();
        let thread = std::thread::current().id();
        let path =
            format!("{name}-{matrices}-{dequantized}-{}-{thread:?}.gguf", std::process::id());
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
