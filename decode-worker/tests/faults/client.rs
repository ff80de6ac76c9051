//! A gateway's session with the decode worker, which checks that each request has one end.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::v1::generation_client::GenerationClient;
use protocol::v1::{self, FinishReason, failure, session_request::Kind};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::system::{DECODE, System};

/// Longer than any wait there is.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// Nothing that is still to come comes later.
const SILENCE: Duration = Duration::from_secs(1);

/// What came of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Finished(FinishReason),
    Failed(failure::Kind),
}

/// See the module's description. Dropping it ends the session.
pub struct Client {
    messages: mpsc::Sender<v1::SessionRequest>,
    frames: Streaming<v1::StepFrame>,
    answers: BTreeMap<u64, Answer>,
}

impl Client {
    pub async fn connect(system: &System) -> Self {
        let (messages, outbound) = mpsc::channel(16);
        let mut client = GenerationClient::new(system.connect(DECODE).await);
        let session = client.session(ReceiverStream::new(outbound)).await.unwrap();
        Self { messages, frames: session.into_inner(), answers: BTreeMap::new() }
    }

    pub async fn ask(&mut self, number: u64, request: v1::GenerateRequest) {
        self.answers.insert(number, Answer::default());
        self.say(Kind::Generate(v1::GenerateRequest { request: number, ..request })).await;
    }

    pub async fn cancel(&self, number: u64) {
        self.say(Kind::Cancel(v1::CancelRequest { request: number })).await;
    }

    async fn say(&self, kind: Kind) {
        self.messages.send(v1::SessionRequest { kind: Some(kind) }).await.unwrap();
    }

    /// Reads up to a request's end.
    pub async fn ended(&mut self, number: u64) -> Answer {
        while self.answers[&number].end.is_none() {
            self.read().await;
        }
        self.answers[&number].clone()
    }

    /// Reads until a request has this many tokens.
    pub async fn has_tokens(&mut self, number: u64, count: usize) {
        while self.answers[&number].tokens.len() < count {
            self.read().await;
        }
    }

    /// Reads what is left until nothing more comes, and says what came of a request.
    pub async fn silent(&mut self, number: u64) -> Answer {
        let mut until = Instant::now() + SILENCE;
        while let Ok(frame) = timeout_at(until, self.frames.message()).await {
            let frame = frame.unwrap().expect("the session goes on");
            if !frame.updates.is_empty() {
                until = Instant::now() + SILENCE;
            }
            self.take(frame);
        }
        self.answers[&number].clone()
    }

    async fn read(&mut self) {
        let frame = timeout(DEADLINE, self.frames.message()).await.expect("it has an end");
        self.take(frame.unwrap().expect("the session goes on"));
    }

    fn take(&mut self, frame: v1::StepFrame) {
        for update in frame.updates {
            let answer = self.answers.get_mut(&update.request).expect("it was asked");
            assert_eq!(answer.end, None, "nothing comes after the end: {update:?}");
            answer.tokens.extend(update.tokens.iter().map(|token| token.id));
            answer.end = match (update.finish(), &update.failure) {
                (FinishReason::Unspecified, None) => None,
                (FinishReason::Unspecified, Some(failure)) => Some(End::Failed(failure.kind())),
                (reason, None) => Some(End::Finished(reason)),
                both => panic!("finished and failed: {both:?}"),
            };
        }
    }
}
