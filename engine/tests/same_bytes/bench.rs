//! Fixtures, and engines that compute them on one kernel path.

use std::path::Path;
use std::sync::Arc;

use engine::{
    Compute, CpuRunner, Defect, Engine, Int8Cache, KernelPath, Model, ModelConfig, SequenceOutput,
    SequenceRequest,
};
use grammar::{Compiler, Grammar};
use protocol::v1::{FinishReason, Token};

use crate::scenario::Sizes;

/// A model, and threads to compute it with.
pub struct Bench {
    model: Arc<Model>,
    /// One thread, and two.
    computes: [Arc<Compute>; 2],
    /// Over its vocabulary, read as bytes.
    pub grammars: Vec<Grammar>,
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
    /// Of a fixture, or of one "in int8".
    pub fn new(fixture: &str, path: KernelPath, defect: Option<Defect>) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let compute = |threads| match defect {
            None => Compute::new(threads, path),
            Some(defect) => Compute::with_defect(threads, path, defect),
        };
        let model = Arc::new(match fixture.strip_suffix(" in int8") {
            None => Model::load(&fixtures.join(fixture), path).unwrap(),
            Some(fixture) => {
                let directory = Some(env!("CARGO_TARGET_TMPDIR").into());
                let cache = Int8Cache { directory, progress: &|_, _| {} };
                Model::load_in_int8(&fixtures.join(fixture), path, &cache).unwrap()
            }
        });
        Self {
            grammars: grammars(&model.config),
            model,
            computes: [1, 2].map(|threads| Arc::new(compute(threads).unwrap())),
        }
    }

    pub fn vocabulary_size(&self) -> usize {
        self.model.config.vocabulary_size
    }

    /// A fresh engine.
    pub fn engine(&self, sizes: Sizes) -> Engine {
        let compute = self.computes[sizes.threads - 1].clone();
        Engine::new(Box::new(CpuRunner::new(self.model.clone(), compute)), sizes.config).unwrap()
    }

    /// The answer to a request in a fresh engine, without company.
    pub fn alone(&self, sizes: Sizes, request: &SequenceRequest) -> Answer {
        let mut engine = self.engine(sizes);
        engine.generate(request.clone()).unwrap();
        let mut answer = Answer::default();
        while answer.finish.is_none() {
            let output = engine.step();
            assert!(!output.is_idle(), "{request:?} does not end");
            for news in output.sequences {
                answer.add(news);
            }
        }
        answer
    }
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
