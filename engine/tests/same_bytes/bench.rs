//! Fixtures, and engines that compute them on one kernel path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engine::{
    Compute, CpuRunner, Defect, Engine, Int8Cache, KernelPath, Model, ModelConfig, Runner,
    SequenceOutput, SequenceRequest,
};
use gguf::TensorType;
use gguf::test_support::{Conversion, convert};
use grammar::{Compiler, Grammar};
use protocol::v1::{FinishReason, Token};

use crate::scenario::Sizes;

/// A model, and what computes it.
pub struct Bench {
    computed_by: ComputedBy,
    vocabulary_size: usize,
    /// Over its vocabulary, read as bytes.
    pub grammars: Vec<Grammar>,
}

enum ComputedBy {
    /// Our kernels, with one thread, and with two.
    Kernels(Arc<Model>, [Arc<Compute>; 2]),
    /// On an emulated GPU.
    Cuda(Arc<engine::CudaModel>),
    #[cfg(feature = "candle")]
    Candle(Arc<engine::CandleModel>),
}

/// What a request's client gets.
#[derive(Default)]
pub struct Answer {
    pub tokens: Vec<Token>,
    /// Where it is known: `Engine::activate` does not say.
    pub finish: Option<FinishReason>,
    /// Where it was asked for.
    pub prompt_report: Vec<Token>,
}

/// Long forced parts and short ones, choices, bounded repetition: within the tokens that requests have.
const GRAMMARS: [&str; 3] = [
    r#"start: "{\"ab\": [" /[a-z]{1,6}/ "], \"abab\": " /[0-9]{1,3}/ "}""#,
    r#"start: ("ab ab" | "ab" | /[^"]{0,9}/ | "é😀x") "ab a""#,
    r#"start: %json {"type": "object", "properties": {"ab": {"enum": [1, "ab a", true]}}, "required": ["ab"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}}"#,
];

impl Answer {
    pub fn add(&mut self, news: SequenceOutput) {
        assert_eq!(news.failure, None);
        self.tokens.extend(news.tokens);
        self.prompt_report.extend(news.prompt_report);
        self.finish = news.finish;
    }
}

impl Bench {
    /// Of a fixture, or of one "in" another type: int8 as at load, others by way of GGUF files.
    pub fn new(fixture: &str, path: KernelPath, defect: Option<Defect>) -> Self {
        let compute = |threads| match defect {
            None => Compute::new(threads, path),
            Some(defect) => Compute::with_defect(threads, path, defect),
        };
        let model = loaded(fixture, path);
        let config = model.config.clone();
        let computes = [1, 2].map(|threads| Arc::new(compute(threads).unwrap()));
        Self::of(&config, ComputedBy::Kernels(model, computes))
    }

    /// The same on a GPU.
    pub fn with_cuda(model: Arc<engine::CudaModel>) -> Self {
        let config = model.config.clone();
        Self::of(&config, ComputedBy::Cuda(model))
    }

    /// The same by candle.
    #[cfg(feature = "candle")]
    pub fn with_candle(model: Arc<engine::CandleModel>) -> Self {
        let config = model.config.clone();
        Self::of(&config, ComputedBy::Candle(model))
    }

    fn of(config: &ModelConfig, computed_by: ComputedBy) -> Self {
        let grammars = grammars(config);
        Self { computed_by, vocabulary_size: config.vocabulary_size, grammars }
    }

    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// A fresh engine.
    pub fn engine(&self, sizes: Sizes) -> Engine {
        let runner: Box<dyn Runner> = match &self.computed_by {
            ComputedBy::Kernels(model, computes) => {
                let compute = computes[sizes.threads - 1].clone();
                Box::new(CpuRunner::new(model.clone(), compute))
            }
            ComputedBy::Cuda(model) => Box::new(engine::CudaRunner::new(model.clone())),
            #[cfg(feature = "candle")]
            ComputedBy::Candle(model) => Box::new(engine::CandleRunner::new(model.clone())),
        };
        Engine::new(runner, sizes.config).unwrap()
    }

    /// The answer to a request in a fresh engine, without company.
    pub fn alone(&self, sizes: Sizes, request: &SequenceRequest) -> Answer {
        let mut engine = self.engine(sizes);
        engine.generate(request.clone()).unwrap();
        let mut answer = Answer::default();
        while answer.finish.is_none() {
            let output = engine.step().unwrap();
            assert!(!output.is_idle(), "{request:?} does not end");
            for news in output.sequences {
                answer.add(news);
            }
        }
        answer
    }
}

/// Each model is loaded once.
fn loaded(fixture: &str, path: KernelPath) -> Arc<Model> {
    static LOADED: Mutex<BTreeMap<String, Arc<Model>>> = Mutex::new(BTreeMap::new());
    let mut all = LOADED.lock().unwrap();
    let load = || {
        Arc::new(match fixture.split_once(" in ") {
            Some((fixture, "int8")) => load_int8(&directory(fixture), path),
            Some((fixture, kind)) => load_gguf(&directory(fixture), kind, path),
            None => Model::load(&directory(fixture), path).unwrap(),
        })
    };
    all.entry(format!("{fixture} on {path}")).or_insert_with(load).clone()
}

pub fn directory(fixture: &str) -> PathBuf {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    match fixture {
        "demo" => engine.join("../models/demo"),
        fixture => engine.join("tests/fixtures").join(fixture),
    }
}

fn load_int8(directory: &Path, path: KernelPath) -> Model {
    let cache = Some(env!("CARGO_TARGET_TMPDIR").into());
    let cache = Int8Cache { directory: cache, progress: &|_, _| {} };
    Model::load_in_int8(directory, path, &cache).unwrap()
}

/// The model of a directory, by way of a GGUF file with its matrices in a type.
fn load_gguf(directory: &Path, kind: &str, path: KernelPath) -> Model {
    let kind = TensorType::named(kind).unwrap();
    let conversion = Conversion { matrices: &|_| kind, pre: "stator-demo", dequantized: false };
    let name = format!("same-bytes-{kind}-{path}-{}.gguf", std::process::id());
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, convert(directory, &conversion).finish()).unwrap();
    let model = Model::load(&file, path).unwrap();
    // Mapped it stays.
    std::fs::remove_file(&file).unwrap();
    model
}

/// None where the vocabulary is too small for the test tokenizer.
fn grammars(config: &ModelConfig) -> Vec<Grammar> {
    let tokenizer = tokenizer::test_support::byte_level_tokenizer();
    if tokenizer.tokens() > config.vocabulary_size {
        return Vec::new();
    }
    let eos = &config.eos_token_ids;
    let compiler = Compiler::new(Arc::new(tokenizer), config.vocabulary_size, eos).unwrap();
    GRAMMARS.iter().map(|text| compiler.compile(text).unwrap()).collect()
}
