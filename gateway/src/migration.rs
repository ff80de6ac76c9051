//! A request's tokens, from whichever workers it takes: when one fails, another goes on from the tokens
//! that are there, and nobody behind this sees more than a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::WorkerLife;
use protocol::v1::{self, RequestUpdate, failure::Kind};
use tokio::time::Instant;

use crate::dispatch::{Cause, Dispatcher, Excluded, Placed, Prompt};
use crate::openai::ApiError;

/// Workers that may fail one request before its client is told.
const FAILURES_MAX: usize = 8;

/// When to come back after that.
const RETRY_S: u64 = 1;

/// What migrations count, and what tests may break.
#[derive(Default)]
pub struct Migrations {
    by_cause: [AtomicU64; Cause::ALL.len()],
    to_other_numerics: AtomicU64,
    break_for_tests: bool,
}

impl Migrations {
    /// None yet. See `GatewayConfig::breaks_migration`.
    pub fn new(break_for_tests: bool) -> Self {
        Self { break_for_tests, ..Default::default() }
    }

    /// How many there were, by cause.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = Cause::ALL.into_iter().zip(&self.by_cause);
        counts.map(|(cause, count)| (cause.name(), count.load(Ordering::Relaxed))).collect()
    }

    /// How many went on under another arithmetic, because no worker of their own was left.
    pub fn to_other_numerics(&self) -> u64 {
        self.to_other_numerics.load(Ordering::Relaxed)
    }

    fn count(&self, cause: Cause) {
        self.by_cause[cause as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module's description. Dropping it cancels the request; dropping the future of `next` does not,
/// and loses nothing.
pub struct TokenStream {
    dispatcher: Arc<Dispatcher>,
    prompt: Prompt,
    placed: Placed,
    /// Under which arithmetic the answer began.
    numerics_id: String,
    excluded: Excluded,
    /// Workers that had the request and failed it.
    failures: usize,
    /// The answer has no worker now.
    is_adrift: bool,
    /// A failure that has come and waits to be handled.
    failed: Option<RequestUpdate>,
    /// Since when the answer waits for another worker's first token.
    migrating_since: Option<Instant>,
}

impl TokenStream {
    /// Gives a request to a worker. Errors: none can take it.
    pub async fn begin(dispatcher: Arc<Dispatcher>, prompt: Prompt) -> Result<Self, ApiError> {
        let mut excluded = Excluded::default();
        let placed = dispatcher.place(&prompt, "", &mut excluded).await?;
        excluded.recovered();
        let numerics_id = placed.numerics_id.clone();
        Ok(Self {
            dispatcher,
            prompt,
            placed,
            numerics_id,
            excluded,
            failures: 0,
            is_adrift: false,
            failed: None,
            migrating_since: None,
        })
    }

    /// Under which arithmetic the answer began.
    pub fn numerics_id(&self) -> &str {
        &self.numerics_id
    }

    /// Why it went where it went; empty unless asked for.
    pub fn explanation(&self) -> &str {
        &self.placed.explanation
    }

    /// Who has it now, or had it last.
    pub fn worker(&self) -> &WorkerLife {
        &self.placed.worker
    }

    /// What has come already, if anything, and if it is no failure.
    pub fn ready(&mut self) -> Option<RequestUpdate> {
        if self.is_adrift || self.failed.is_some() {
            return None;
        }
        match self.placed.stream.ready()? {
            update if update.failure.is_some() => {
                self.failed = Some(update);
                None
            }
            update => Some(self.taken(update)),
        }
    }

    /// The next tokens, or the end; never a failure. Errors: the request is at fault, or no worker is
    /// left to go on.
    pub async fn next(&mut self) -> Result<RequestUpdate, ApiError> {
        loop {
            if self.is_adrift {
                self.place_again().await?;
            }
            let next = match self.failed.take() {
                Some(failed) => Ok(failed),
                None => self.placed.stream.next().await,
            };
            let cause = match next {
                Ok(RequestUpdate { failure: Some(failure), .. }) => self.cause_of(&failure)?,
                Ok(update) => return Ok(self.taken(update)),
                Err(lost) => lost.into(),
            };
            self.lose_worker(cause)?;
        }
    }

    fn taken(&mut self, mut update: RequestUpdate) -> RequestUpdate {
        if let Some(since) = self.migrating_since.take() {
            let (request_id, to) = (&self.prompt.request_id, &self.placed.worker.id);
            let took_ms = since.elapsed().as_secs_f64() * 1e3;
            tracing::info!(request_id, %to, took_ms, "migrated");
        }
        self.excluded.recovered();
        if !self.prompt.generated.is_empty() {
            // What the client is told is what the prompt's first computation found.
            update.cached_tokens = None;
        }
        self.prompt.generated.extend(update.tokens.iter().map(|token| token.id));
        if !update.tokens.is_empty() {
            // It came with the first tokens.
            self.prompt.prompt_logprobs = None;
        }
        update
    }

    /// Errors: the same would come of every worker.
    fn cause_of(&self, failure: &v1::Failure) -> Result<Cause, ApiError> {
        match failure.kind() {
            Kind::Invalid if self.prompt.generated.is_empty() => {
                Err(ApiError::invalid_value("prompt", failure.message.clone()))
            }
            Kind::Grammar => Err(ApiError::grammar(&self.prompt.grammar_param, &failure.message)),
            Kind::Overloaded => Ok(Cause::Overloaded),
            Kind::Unavailable => Ok(Cause::Leaving),
            Kind::Invalid | Kind::Internal | Kind::Unspecified => {
                let worker = &self.placed.worker.id;
                tracing::error!(%worker, failure.message, "a worker failed a request");
                Ok(Cause::Failed)
            }
        }
    }

    /// Errors: too many workers failed this request.
    fn lose_worker(&mut self, cause: Cause) -> Result<(), ApiError> {
        let (request_id, from) = (&self.prompt.request_id, self.placed.worker.clone());
        let tokens = self.prompt.generated.len();
        tracing::info!(request_id, from = %from.id, cause = cause.name(), tokens, "migrating request");
        self.dispatcher.migrations.count(cause);
        self.dispatcher.blame(&from, cause);
        self.excluded.add(from, cause);
        self.failures += 1;
        self.is_adrift = true;
        self.migrating_since.get_or_insert_with(Instant::now);
        if self.failures >= FAILURES_MAX {
            tracing::warn!(request_id, failures = FAILURES_MAX, "given up: every worker failed it");
            return Err(ApiError::overloaded(RETRY_S));
        }
        if self.dispatcher.migrations.break_for_tests {
            self.prompt.generated.pop();
        }
        Ok(())
    }

    async fn place_again(&mut self) -> Result<(), ApiError> {
        let before = &self.placed.numerics_id;
        let Self { dispatcher, prompt, numerics_id, excluded, .. } = self;
        let placed = dispatcher.place(prompt, numerics_id, excluded).await.inspect_err(|_| {
            let request_id = &prompt.request_id;
            tracing::warn!(request_id, "given up: no worker is left to go on with it");
        })?;
        if placed.numerics_id != *before {
            self.dispatcher.migrations.to_other_numerics.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                request_id = self.prompt.request_id,
                from = before,
                to = placed.numerics_id,
                "goes on under another numerics id: its bytes may differ from an undisturbed answer"
            );
        }
        self.placed = placed;
        self.is_adrift = false;
        Ok(())
    }
}
