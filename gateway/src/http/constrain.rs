//! Grammars are tried before workers are asked to follow them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::models::Model;
use crate::openai::ApiError;

/// Grammars that are compiled at once; others wait.
const COMPILATIONS_MAX: usize = 2;

/// How long a request waits for its turn, and then for its grammar: a compilation is bounded by itself,
/// and takes far less.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
const COMPILATION_TIMEOUT: Duration = Duration::from_secs(1);

/// When to come back where many others have grammars.
const RETRY_S: u64 = 1;

/// Compiles grammars, a few at once.
pub struct GrammarCheck {
    /// One permit per grammar that is compiled, until it is, however long its request waits.
    compilations: Arc<Semaphore>,
}

impl GrammarCheck {
    /// One for all requests.
    pub fn new() -> Self {
        Self { compilations: Arc::new(Semaphore::new(COMPILATIONS_MAX)) }
    }

    /// The grammar, which `param` of the request asked for, as workers are told it; empty where there is
    /// none. Errors: answers of `model` cannot be made to match it, it takes too long to find out, or
    /// too many others wait to know.
    pub async fn checked(
        &self,
        model: &Arc<Model>,
        grammar: Option<String>,
        param: &str,
    ) -> Result<Arc<str>, ApiError> {
        let Some(grammar) = grammar else { return Ok("".into()) };
        if model.has_compiled(&grammar) {
            return Ok(grammar.into());
        }
        let turn = self.compilations.clone().acquire_owned();
        let turn = tokio::time::timeout(TURN_TIMEOUT, turn).await;
        let Ok(Ok(turn)) = turn else { return Err(ApiError::overloaded(RETRY_S)) };
        // The first one of a model also waits for its vocabulary, which is not the grammar's fault.
        let turn = aside(model.clone(), turn, |model| model.prepare_grammars()).await?.0;
        let text = grammar.clone();
        let compiled = aside(model.clone(), turn, move |model| model.check_grammar(&text));
        let problem = match tokio::time::timeout(COMPILATION_TIMEOUT, compiled).await {
            Ok(compiled) => match compiled?.1 {
                Ok(()) => return Ok(grammar.into()),
                Err(error) => error.to_string(),
            },
            Err(_) => "it takes too long to compile".to_string(),
        };
        Err(ApiError::grammar(param, &problem))
    }
}

/// Does what takes a while where it holds up nobody. The turn is over when it is done, also when nobody
/// waits for it any more.
async fn aside<T: Send + 'static>(
    model: Arc<Model>,
    turn: OwnedSemaphorePermit,
    work: impl FnOnce(&Model) -> T + Send + 'static,
) -> Result<(OwnedSemaphorePermit, T), ApiError> {
    let aside = tokio::task::spawn_blocking(move || {
        let done = work(&model);
        (turn, done)
    });
    aside.await.map_err(|_| ApiError::internal())
}
