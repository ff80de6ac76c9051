//! Compiles grammars, and remembers the latest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use parking_lot::Mutex;
use tokenizer::Tokenizer;
use toktrie::{InferenceCapabilities, TokEnv};

use crate::cache::Cache;
use crate::state::GrammarState;
use crate::token_environment::TokenEnvironment;

/// Compiled grammars that are remembered; the one used longest ago is forgotten for a new one.
const CACHED_GRAMMARS_MAX: usize = 64;

/// Larger texts are refused unread.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Why a grammar cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is not one, or uses what is not supported: a sentence of the compiler's.
    #[error("{0}")]
    Invalid(String),
    /// It would take too much time or memory.
    #[error("it is too complex: {0}")]
    TooComplex(String),
}

/// Compiles grammars for one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    cache: Mutex<Cache>,
}

/// A compiled grammar. Cheap to clone.
#[derive(Clone)]
pub struct Grammar {
    /// Nothing matched yet. What its clones learn of the grammar, they share.
    beginning: Arc<Mutex<Matcher>>,
    /// What was learned has reached its limit: another one of the same text has to be compiled.
    is_spent: Arc<AtomicBool>,
}

impl Compiler {
    /// For a model whose token ids are below `vocabulary_size`, and end texts by `eos_token_ids`.
    /// Errors: the vocabulary is of a kind that cannot be used.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        vocabulary_size: usize,
        eos_token_ids: &[u32],
    ) -> Result<Self, GrammarError> {
        let environment = TokenEnvironment::new(tokenizer, vocabulary_size, eos_token_ids);
        let environment: TokEnv = Arc::new(environment);
        let capabilities = InferenceCapabilities::default();
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| GrammarError::Invalid(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, cache: Mutex::new(Cache::new(CACHED_GRAMMARS_MAX)) })
    }

    /// The grammar of this text, if it is remembered and can be used.
    pub fn cached(&self, text: &str) -> Option<Grammar> {
        let grammar = self.cache.lock().get(text);
        grammar.filter(|grammar| !grammar.is_spent.load(Ordering::Relaxed))
    }

    /// Compiles `text`, which may take some 100 ms, and checks that something matches it.
    pub fn compile(&self, text: &str) -> Result<Grammar, GrammarError> {
        if let Some(grammar) = self.cached(text) {
            return Ok(grammar);
        }
        if text.len() > TEXT_BYTES_MAX {
            let problem = format!("it has {} bytes, at most {TEXT_BYTES_MAX} are read", text.len());
            return Err(GrammarError::TooComplex(problem));
        }
        let grammar = TopLevelGrammar::from_lark(text.to_string());
        let create = AssertUnwindSafe(|| self.factory.create_parser(grammar));
        let parser = catch_unwind(create).map_err(|_| {
            GrammarError::Invalid("it makes the compiler of grammars fail".to_string())
        })?;
        let parser =
            parser.map_err(|error| GrammarError::Invalid(first_line(&error.to_string())))?;
        let beginning = Arc::new(Mutex::new(Matcher::new(Ok(parser))));
        let grammar = Grammar { beginning, is_spent: Arc::default() };
        grammar.begin().allowed()?;
        self.cache.lock().insert(text, grammar.clone());
        Ok(grammar)
    }
}

impl Grammar {
    /// Before the first token.
    pub fn begin(&self) -> GrammarState {
        GrammarState::new(self.beginning.lock().clone(), self.is_spent.clone())
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Grammar")
    }
}

/// Below the library's own, which are for schemas of megabytes: compiling stays within tens of
/// milliseconds, a mask within some 10 ms, and a grammar within some 30 MB.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// The library's messages go on with dumps of its state.
pub(crate) fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_string()
}
