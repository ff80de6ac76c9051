//! Which calls of the driver are made when; and whatever call fails: an error, no panic, right tokens
//! or none, and nothing that stays on the GPU.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use cuda_driver::fake::{self, Fake};
use engine::{
    CudaModel, CudaOptions, CudaRunner, Engine, EngineConfig, Libraries, Numerics, SequenceId,
    SequenceRequest, WeightFormat,
};
use protocol::v1::{Sampling, Stopping};

/// `CUDA_ERROR_OPERATING_SYSTEM`, after which a GPU goes on, and `CUDA_ERROR_LAUNCH_FAILED`, after
/// which it does not.
const CODES: [i32; 2] = [304, 719];
const CONFIG: EngineConfig = EngineConfig {
    block_size: 16,
    kv_blocks: 64,
    max_num_seqs: 8,
    max_num_batched_tokens: 64,
    waiting_sequences_max: 8,
    speculative_tokens: 0,
    step_target: None,
    shares_memory: false,
};

fn load(fake: &Fake) -> Result<CudaModel, Box<dyn Error>> {
    let libraries = fake::libraries();
    let options = CudaOptions {
        ordinal: 0,
        numerics: Numerics::Fast,
        weights: WeightFormat::AsStored,
        kernel_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")),
        libraries: Libraries {
            driver: Some(fake.path().to_path_buf()),
            nvrtc: Some(libraries.join(fake::NVRTC)),
            cublas: Some(libraries.join(fake::CUBLAS)),
        },
        keeper: None,
    };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama2");
    Ok(CudaModel::load(&fixture, &options)?)
}

fn request(id: u64, logprobs: Option<u32>) -> SequenceRequest {
    SequenceRequest {
        id: SequenceId(id),
        prompt: (1..40).collect(),
        generated: Vec::new(),
        sampling: Sampling { repetition_penalty: 1.0, top_p: 1.0, logprobs, ..Default::default() },
        stopping: Stopping { max_tokens: 8, ignore_eos: true, ..Default::default() },
        cache_salt: String::new(),
        grammar: None,
        prompt_logprobs: None,
        priority: 0,
    }
}

/// Loads a model, and generates by every kind of step: prompts, captured ones, tokens that the GPU
/// chooses and that the host does.
fn generate(fake: &Fake) -> Result<BTreeMap<u64, Vec<u32>>, Box<dyn Error>> {
    let runner = CudaRunner::new(Arc::new(load(fake)?));
    let mut engine = Engine::new(Box::new(runner), CONFIG)?;
    engine.warm_up()?;
    engine.generate(request(0, None))?;
    engine.generate(request(1, Some(2)))?;
    let mut tokens: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    loop {
        let output = engine.step()?;
        if output.is_idle() {
            return Ok(tokens);
        }
        for news in output.sequences {
            tokens.entry(news.id.0).or_default().extend(news.tokens.iter().map(|token| token.id));
        }
    }
}

#[test]
fn whatever_call_fails_is_an_error_or_changes_nothing() {
    let fake = Fake::new();
    let expected = generate(&fake).unwrap();
    assert_eq!(expected[&0].len(), 8);
    assert_eq!(expected[&0], expected[&1]);
    assert_eq!(fake.left(), [""; 0]);
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    for call in fake.calls() {
        *counts.entry(call).or_default() += 1;
    }
    assert!(counts["cuGraphLaunch"] > 3, "steps are captured: {counts:?}");
    counts.remove("cuInit");
    counts.insert("execution".into(), 40);
    let mut failed = 0;
    for (call, count) in counts {
        for after in [1, count / 2 + 1, count] {
            // What fails when it runs, and not when it is submitted, is lost.
            let codes = if call == "execution" { &CODES[1..] } else { &CODES[..] };
            for code in codes.iter().copied() {
                // A lost GPU is lost to its process.
                let fake = Fake::new();
                fake.fail(&call, after, code);
                match generate(&fake) {
                    Ok(tokens) => assert_eq!(tokens, expected, "{call} {after} {code}"),
                    Err(error) => {
                        failed += 1;
                        assert!(error.to_string().len() > 20, "{call}: {error}");
                    }
                }
                let left = fake.left();
                assert!(left.is_empty(), "{call} {after} {code} leaves {left:?}");
            }
        }
    }
    assert!(failed > 50, "{failed}");
}

/// What is copied of a step's KV waits for the event that was recorded last: were it recorded with the
/// step's work, copies would wait for the step after it.
#[test]
fn kv_is_written_when_its_step_has_ended_and_not_when_the_next_one_has() {
    let fake = Fake::new();
    let runner = CudaRunner::new(Arc::new(load(&fake).unwrap()));
    let mut engine = Engine::new(Box::new(runner), CONFIG).unwrap();
    engine.generate(request(0, None)).unwrap();
    fake.calls();
    assert!(!engine.step().unwrap().is_idle());
    let calls = fake.calls();
    let last = |name: &str| calls.iter().rposition(|call| call == name).unwrap();
    assert!(last("cuEventRecord") > last("cuStreamSynchronize"), "{calls:?}");
    assert!(last("cuEventRecord") > last("cuLaunchKernel"), "{calls:?}");
}
