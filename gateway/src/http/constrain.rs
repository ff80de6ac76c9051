//! Grammars are tried before workers are asked to follow them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::models::Model;
use crate::openai::ApiError;

/// Grammars that are compiled at once; others wait.
const COMPILATIONS_MAX: usize = 2;

/// How long a request waits for that: a compilation is bounded by itself, and takes far less.
const COMPILATION_TIMEOUT: Duration = Duration::from_secs(1);

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

    /// Checks that answers of `model` can be made to match `grammar`, which `param` of the request asked
    /// for. Errors: they cannot, or it takes too long to find out.
    pub async fn check(
        &self,
        model: &Arc<Model>,
        grammar: &str,
        param: &str,
    ) -> Result<(), ApiError> {
        if model.has_compiled(grammar) {
            return Ok(());
        }
        let compiled = tokio::time::timeout(COMPILATION_TIMEOUT, self.compile(model, grammar));
        match compiled.await {
            Ok(compiled) => compiled?.map_err(|error| ApiError::grammar(param, &error.to_string())),
            Err(_) => Err(ApiError::grammar(param, "it takes too long to compile")),
        }
    }

    async fn compile(
        &self,
        model: &Arc<Model>,
        grammar: &str,
    ) -> Result<Result<(), grammar::GrammarError>, ApiError> {
        let permit = self.compilations.clone().acquire_owned().await;
        let (model, grammar) = (model.clone(), grammar.to_string());
        let aside = tokio::task::spawn_blocking(move || {
            let _until_done = permit;
            model.check_grammar(&grammar)
        });
        aside.await.map_err(|_| ApiError::internal())
    }
}
