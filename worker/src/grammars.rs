//! The grammars that requests bring, compiled.

use std::sync::{Arc, OnceLock};

use grammar::{Compiler, Grammar, GrammarError};
use tokenizer::Tokenizer;
use tokio::sync::Semaphore;

/// Compiles grammars for a worker's model, and remembers the latest.
pub struct Grammars {
    tokenizer_json: prost::bytes::Bytes,
    vocabulary_size: usize,
    eos_token_ids: Vec<u32>,
    /// Made for the first request that has a grammar: a large vocabulary takes a second.
    compiler: OnceLock<Result<Compiler, GrammarError>>,
    /// Grammars that are compiled at once; other requests with new ones wait.
    compilations: Semaphore,
}

/// Grammars that are compiled at once.
const COMPILATIONS_MAX: usize = 2;

impl Grammars {
    /// For a model with this `tokenizer.json`.
    pub fn new(
        tokenizer_json: prost::bytes::Bytes,
        vocabulary_size: usize,
        eos_token_ids: Vec<u32>,
    ) -> Self {
        Self {
            tokenizer_json,
            vocabulary_size,
            eos_token_ids,
            compiler: OnceLock::new(),
            compilations: Semaphore::new(COMPILATIONS_MAX),
        }
    }

    /// Whether grammars can be followed here: an answer that matches must be able to end.
    pub fn are_possible(&self) -> bool {
        !self.eos_token_ids.is_empty()
    }

    /// The grammar of this text, none where it is empty. Errors: it cannot be followed.
    pub async fn get(self: &Arc<Self>, text: &str) -> Result<Option<Grammar>, GrammarError> {
        if text.is_empty() {
            return Ok(None);
        }
        if let Some(grammar) = self.cached(text) {
            return Ok(Some(grammar));
        }
        let _turn = self.compilations.acquire().await;
        // Another request may have brought the same one meanwhile.
        if let Some(grammar) = self.cached(text) {
            return Ok(Some(grammar));
        }
        let (grammars, text) = (self.clone(), text.to_string());
        let compiled = tokio::task::spawn_blocking(move || grammars.compile(&text));
        let lost = |_| GrammarError::Invalid("the compiler panicked".into());
        compiled.await.map_err(lost)?.map(Some)
    }

    fn cached(&self, text: &str) -> Option<Grammar> {
        self.compiler.get()?.as_ref().ok()?.cached(text)
    }

    fn compile(&self, text: &str) -> Result<Grammar, GrammarError> {
        let compiler = self.compiler.get_or_init(|| self.new_compiler());
        compiler.as_ref().map_err(GrammarError::clone)?.compile(text)
    }

    fn new_compiler(&self) -> Result<Compiler, GrammarError> {
        let tokenizer = Tokenizer::from_bytes(&self.tokenizer_json, self.vocabulary_size);
        let tokenizer = tokenizer.map_err(|error| GrammarError::Invalid(error.to_string()))?;
        Compiler::new(Arc::new(tokenizer), self.vocabulary_size, &self.eos_token_ids)
    }
}
