//! Weights in 8 bits: close to the model's own, made once, and made again when something is wrong.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::{
    Compute, CpuRunner, Engine, EngineConfig, Int8Cache, KernelPath, LoadError, Model, SequenceId,
    SequenceRequest,
};
use protocol::v1::{Sampling, Stopping, Token};

/// A directory of its own for each test, gone when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("int8-{test}"));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// What is in it.
    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

/// Loads a model, and says how many bytes of weights had to be made.
fn load(model: &Path, directory: &Path) -> (Result<Model, LoadError>, u64) {
    let made = AtomicU64::new(0);
    let progress = |written, total| {
        assert!(written <= total);
        made.fetch_max(written, Ordering::Relaxed);
    };
    let cache = Int8Cache { directory: Some(directory.into()), progress: &progress };
    let loaded = Model::load_in_int8(model, KernelPath::detect(), &cache);
    (loaded, made.into_inner())
}

/// Greedy tokens with their logprobs.
fn answer(model: Model, path: KernelPath) -> Vec<Token> {
    let compute = Arc::new(Compute::new(2, path).unwrap());
    let config = EngineConfig {
        block_size: 16,
        kv_blocks: 64,
        max_num_seqs: 1,
        max_num_batched_tokens: 512,
        waiting_sequences_max: 1,
        speculative_tokens: 0,
        step_target: None,
        shares_memory: false,
    };
    let mut engine =
        Engine::new(Box::new(CpuRunner::new(Arc::new(model), compute)), config).unwrap();
    let request = SequenceRequest {
        id: SequenceId(1),
        prompt: (0..100).map(|at| at * 17 % 1000 + 300).collect(),
        generated: Vec::new(),
        sampling: Sampling { logprobs: Some(0), ..Default::default() },
        stopping: Stopping { max_tokens: 20, ignore_eos: true, ..Default::default() },
        cache_salt: String::new(),
        grammar: None,
        prompt_logprobs: None,
        priority: 0,
    };
    engine.generate(request).unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < 20 {
        tokens.extend(engine.step().unwrap().sequences.into_iter().flat_map(|news| news.tokens));
    }
    tokens
}

#[test]
fn they_are_made_once_and_mapped_then() {
    let directory = Directory::new("once");
    let (first, made) = load(&demo(), &directory.0);
    let first = first.unwrap();
    assert!(made > 5_000_000, "{made} bytes for 5.8 million parameters");
    let (again, made) = load(&demo(), &directory.0);
    assert_eq!(made, 0);
    assert_eq!(first.numerics_id, again.unwrap().numerics_id);
    let plain = Model::load(&demo(), KernelPath::detect()).unwrap();
    assert_ne!(first.numerics_id, plain.numerics_id);
    assert_ne!(first.weights_id, plain.weights_id);
    assert_eq!(directory.files().len(), 1, "nothing else is left: {:?}", directory.files());
}

#[test]
fn answers_are_close_and_the_same_on_every_path() {
    let directory = Directory::new("close");
    let rounded = || load(&demo(), &directory.0).0.unwrap();
    let found = answer(rounded(), KernelPath::detect());
    assert_eq!(found, answer(rounded(), KernelPath::Portable));
    let expected =
        answer(Model::load(&demo(), KernelPath::detect()).unwrap(), KernelPath::detect());
    assert_eq!(found[0].id, expected[0].id);
    let [found, expected] = [&found[0], &expected[0]].map(|token| token.logprob.unwrap());
    assert!((found - expected).abs() < 0.2, "logprob {found} for {expected}");
}

#[test]
fn what_is_wrong_is_made_again() {
    let directory = Directory::new("again");
    load(&demo(), &directory.0).0.unwrap();
    let file = directory.files().remove(0);
    let right = fs::read(&file).unwrap();
    let mut flipped = right.clone();
    flipped[right.len() / 2] ^= 1;
    let mut other = right.clone();
    other[..20].fill(7);
    for (what, wrong) in
        [("a bit", &flipped[..]), ("its end", &right[..1000]), ("its head", &other), ("all", &[])]
    {
        fs::write(&file, wrong).unwrap();
        let (loaded, made) = load(&demo(), &directory.0);
        loaded.unwrap();
        assert!(made > 0, "{what} was wrong");
        assert_eq!(load(&demo(), &directory.0).1, 0, "{what} was wrong, and is right again");
    }
}

#[test]
fn processes_that_begin_together_make_them_once() {
    let directory = Directory::new("together");
    let made: u64 = std::thread::scope(|scope| {
        let load = || load(&demo(), &directory.0);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
        let loaded = threads.into_iter().map(|thread| thread.join().unwrap());
        loaded.map(|(model, made)| model.map(|_| u64::from(made > 0)).unwrap()).sum()
    });
    assert_eq!(made, 1);
    assert_eq!(directory.files().len(), 1);
}

#[test]
fn where_nothing_can_be_written_says_so() {
    let directory = Directory::new("nowhere");
    let nowhere = directory.0.join("missing");
    let error = load(&demo(), &nowhere).0.err().unwrap().to_string();
    assert!(error.contains("cannot write") && error.contains("--cache-dir"), "{error}");
}
