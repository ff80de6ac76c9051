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

    /// The grammar, which `param` of the request asked for, as workers are told it; empty where there is
    /// none. Errors: answers of `model` cannot be made to match it, or it takes too long to find out.
    pub async fn checked(
        &self,
        model: &Arc<Model>,
        grammar: Option<String>,
        param: &str,
    ) -> Result<String, ApiError> {
        let Some(grammar) = grammar else { return Ok(String::new()) };
        if model.has_compiled(&grammar) {
            return Ok(grammar);
        }
        let compiled = tokio::time::timeout(COMPILATION_TIMEOUT, self.compile(model, &grammar));
        let problem = match compiled.await {
            Ok(compiled) => match compiled? {
                Ok(()) => return Ok(grammar),
                Err(error) => error.to_string(),
            },
            Err(_) => "it takes too long to compile".to_string(),
        };
        Err(ApiError::grammar(param, &problem))
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
