//! Fixtures, and engines that compute them on one kernel path.

use std::path::Path;
use std::sync::Arc;

use engine::{Compute, CpuRunner, Defect, Engine, KernelPath, Model, SequenceRequest};
use protocol::v1::{FinishReason, Token};

use crate::scenario::Sizes;

/// A model, and threads to compute it with.
pub struct Bench {
    model: Arc<Model>,
    /// One thread, and two.
    computes: [Arc<Compute>; 2],
}

/// What a request's client gets.
#[derive(Default)]
pub struct Answer {
    pub tokens: Vec<Token>,
    /// Where it is known: `Engine::activate` does not say.
    pub finish: Option<FinishReason>,
}

impl Bench {
    pub fn new(fixture: &str, path: KernelPath, defect: Option<Defect>) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let compute = |threads| match defect {
            None => Compute::new(threads, path),
            Some(defect) => Compute::with_defect(threads, path, defect),
        };
        Self {
            model: Arc::new(Model::load(&fixtures.join(fixture), path).unwrap()),
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
                answer.tokens.extend(news.token);
                answer.finish = news.finish;
            }
        }
        answer
    }
}
