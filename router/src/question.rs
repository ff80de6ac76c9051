//! What routers are asked.

use protocol::{BlockHash, WorkerLife};

use crate::cost::Sizes;

/// A request, as far as routing is concerned.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Which model is to answer.
    pub model: String,
    /// The prompt's full blocks under each numerics id that serves the model.
    pub prompt_blocks: Vec<(String, Vec<BlockHash>)>,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Length of the answer at most.
    pub max_tokens: usize,
    /// Lives of workers that it must not go to.
    pub excluded: Vec<WorkerLife>,
    /// Of a continued answer: under which numerics id it began; empty where any will do.
    pub preferred_numerics_id: String,
}

impl Question {
    /// Its sizes in tokens.
    pub fn sizes(&self) -> Sizes {
        let bounded = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Sizes { prompt: bounded(self.prompt_tokens), answer_max: bounded(self.max_tokens) }
    }
}

/// No worker can take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No worker serves this model.
    #[error("no worker serves this model")]
    NoWorker,
    /// There are workers, and none that the request may go to.
    #[error("all workers that serve this model were excluded")]
    AllExcluded,
    /// There are workers, and all are about to leave.
    #[error("all workers that serve this model are about to leave")]
    AllDrain,
}
