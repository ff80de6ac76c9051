//! One gateway's session: takes its requests, sends one frame of news per engine step, and cancels
//! everything when the gateway goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use engine::{SequenceId, SequenceOutput};
use protocol::HEARTBEAT;
use protocol::v1::{self, RequestUpdate, session_request::Kind};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};
use worker::{Outputs, SequenceHandle, outputs};

use crate::Context;
use crate::request;
use crate::request_context::{RequestContext, failure, news_of};

/// Tokens that a session may lag behind the engine; beyond, it ends, and its requests with it.
const OUTPUT_QUEUE: usize = 65_536;

/// Tokens in one frame, counted with their alternatives; beyond, another frame begins. Some 100 KB.
const FRAME_TOKENS: usize = 8_192;

/// News from request tasks (first tokens, failures) that waits for the session's loop. At the
/// limit the tasks wait.
const UPDATE_QUEUE: usize = 256;

/// Requests of one session; further ones are refused as overload.
const REQUESTS_MAX: usize = 16_384;

/// See the module's description.
pub struct Session {
    context: Arc<Context>,
    frames: mpsc::Sender<Result<v1::StepFrame, Status>>,
    /// In the order in which they came, so that a simulation replays when all are dropped at once.
    requests: BTreeMap<u64, Active>,
    by_sequence: HashMap<SequenceId, u64>,
}

/// A request under way. Dropping it ends its task and releases its sequence.
struct Active {
    _task: AbortOnDropHandle<()>,
    sequence: SequenceHandle,
}

/// The session's end: the gateway is gone.
struct Gone;

impl Session {
    /// A session without requests.
    pub fn new(context: Arc<Context>, frames: mpsc::Sender<Result<v1::StepFrame, Status>>) -> Self {
        Self { context, frames, requests: BTreeMap::new(), by_sequence: HashMap::new() }
    }

    /// Runs until the gateway goes, then cancels what is left by dropping it.
    pub async fn run(mut self, mut inbound: Streaming<v1::SessionRequest>) {
        let (outputs, mut engine_news) = outputs(OUTPUT_QUEUE);
        let (updates, mut task_news) = mpsc::channel(UPDATE_QUEUE);
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let handled = tokio::select! {
                // In this order: a task reports a first token before it hands its sequence to
                // the engine, so its news must be sent before the engine's.
                biased;
                Some(update) = task_news.recv() => self.send(vec![update]).await,
                news = engine_news.next() => match news {
                    Some(news) => self.send_news(news).await,
                    None => Err(Gone),
                },
                _ = heartbeat.tick() => self.send_progress().await,
                message = inbound.message() => match message {
                    Ok(Some(v1::SessionRequest { kind })) => {
                        self.take(kind, &outputs, &updates).await
                    }
                    Ok(None) | Err(_) => Err(Gone),
                },
                () = self.frames.closed() => Err(Gone),
                // Nobody would say so: this session could still be told to ask the engine.
                () = self.context.host.stopped() => Err(Gone),
            };
            if handled.is_err() {
                tracing::debug!(requests = self.requests.len(), "a gateway's session ended");
                return;
            }
        }
    }

    async fn take(
        &mut self,
        kind: Option<Kind>,
        outputs: &Outputs,
        updates: &mpsc::Sender<RequestUpdate>,
    ) -> Result<(), Gone> {
        match kind {
            Some(Kind::Generate(request)) if self.requests.contains_key(&request.request) => {
                // Not answered by number: that would end the request that has it.
                tracing::warn!(request = request.request, "a request number is used twice");
            }
            Some(Kind::Generate(request)) if self.requests.len() >= REQUESTS_MAX => {
                let message = "too many requests in one session".to_string();
                return self.refuse(request.request, v1::failure::Kind::Overloaded, message).await;
            }
            Some(Kind::Generate(request)) if self.context.presence.is_draining() => {
                let message = "the worker is about to leave".to_string();
                return self.refuse(request.request, v1::failure::Kind::Unavailable, message).await;
            }
            Some(Kind::Generate(request)) => self.start(request, outputs, updates),
            Some(Kind::Cancel(cancel)) => self.remove(cancel.request),
            // A newer gateway may say things that this worker does not know.
            None => {}
        }
        Ok(())
    }

    async fn refuse(
        &mut self,
        request: u64,
        kind: v1::failure::Kind,
        message: String,
    ) -> Result<(), Gone> {
        let failure = failure(kind, message);
        self.send(vec![RequestUpdate { failure, ..news_of(request) }]).await
    }

    fn start(
        &mut self,
        request: v1::GenerateRequest,
        outputs: &Outputs,
        updates: &mpsc::Sender<RequestUpdate>,
    ) {
        let sequence = self.context.host.new_sequence();
        let number = request.request;
        self.by_sequence.insert(sequence.id(), number);
        let context = RequestContext {
            shared: self.context.clone(),
            sequence: sequence.clone(),
            outputs: outputs.clone(),
            grammar: None,
            updates: updates.clone(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(request::run(context, request)));
        self.requests.insert(number, Active { _task: task, sequence });
    }

    fn remove(&mut self, request: u64) {
        if let Some(active) = self.requests.remove(&request) {
            self.by_sequence.remove(&active.sequence.id());
        }
    }

    async fn send_news(&mut self, news: Vec<SequenceOutput>) -> Result<(), Gone> {
        let mut news = news.into_iter().peekable();
        while let Some(first) = news.next() {
            let mut tokens = tokens_with_alternatives(&first);
            let mut frame = vec![first];
            while let Some(next) = news.next_if(|next| {
                tokens += tokens_with_alternatives(next);
                tokens <= FRAME_TOKENS
            }) {
                frame.push(next);
            }
            let updates = self.updates_of(frame);
            self.send(updates).await?;
        }
        Ok(())
    }

    fn updates_of(&self, news: Vec<SequenceOutput>) -> Vec<RequestUpdate> {
        let mut updates: Vec<RequestUpdate> = Vec::new();
        // Where several steps' news comes at once, each request has one update all the same.
        let mut places: HashMap<u64, usize> = HashMap::new();
        for output in news {
            // A sequence that was cancelled meanwhile has no request any more.
            let Some(request) = self.by_sequence.get(&output.id) else { continue };
            let place = *places.entry(*request).or_insert(updates.len());
            if place == updates.len() {
                updates.push(news_of(*request));
            }
            let update = &mut updates[place];
            update.tokens.extend(output.tokens);
            update.prompt_tokens.extend(output.prompt_report);
            if let Some(error) = output.failure {
                update.failure = failure(v1::failure::Kind::Grammar, error.to_string());
            }
            if let Some(tokens) = output.cached_tokens {
                update.cached_tokens = Some(tokens as u32);
            }
            update.finish = output.finish.unwrap_or_default().into();
        }
        updates
    }

    /// Sends one frame, and forgets the requests that end with it.
    async fn send(&mut self, updates: Vec<RequestUpdate>) -> Result<(), Gone> {
        if updates.is_empty() {
            return Ok(());
        }
        for update in &updates {
            if update.finish() != v1::FinishReason::Unspecified || update.failure.is_some() {
                self.remove(update.request);
            }
        }
        self.frames.send(Ok(v1::StepFrame { updates, progress: None })).await.map_err(|_| Gone)
    }

    /// A gateway that reads slowly has frames waiting, and needs no more of them.
    async fn send_progress(&mut self) -> Result<(), Gone> {
        let progress = Some(self.context.host.progress());
        match self.frames.try_send(Ok(v1::StepFrame { updates: Vec::new(), progress })) {
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Gone),
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
        }
    }
}

fn tokens_with_alternatives(output: &SequenceOutput) -> usize {
    let tokens = output.tokens.iter().chain(&output.prompt_report);
    tokens.map(|token| 1 + token.top_logprobs.len()).sum()
}
