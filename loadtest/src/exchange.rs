//! One chat completion: the request, and its stream to the end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};

use crate::chunk::{Chunk, DONE, Usage, error_in_body};
use crate::client::{Client, Reply};
use crate::connection::explain;
use crate::sse::{SseParser, TooLong};

/// How much of an error's body is read.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// How long the end of the body may come after `[DONE]`; then the connection is given up.
const BODY_END_TIMEOUT: Duration = Duration::from_secs(1);

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Empty unless it was asked for.
    pub text: String,
    pub usage: Option<Usage>,
    /// When `[DONE]` came.
    pub done_at: Instant,
}

/// Why there is no whole answer, with a sentence for the user.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server has no room: 429 or 503.
    Rejected(String),
    /// No answer, or an error instead of one.
    Failed(String),
    /// The stream broke off, or ended without `[DONE]`.
    Cut(String),
}

impl Failure {
    /// The sentence.
    pub fn message(&self) -> &str {
        match self {
            Self::Rejected(message) | Self::Failed(message) | Self::Cut(message) => message,
        }
    }
}

impl From<TooLong> for Failure {
    fn from(TooLong: TooLong) -> Self {
        Self::Failed("an event of more than 1 MiB".into())
    }
}

/// Sends `body` and reads the stream; `on_content` is called as each event with content comes. All
/// events of one read have one time.
pub async fn exchange(
    client: &Client,
    body: Bytes,
    keep_text: bool,
    mut on_content: impl FnMut(Instant),
) -> Result<Answer, Failure> {
    let sent = client.send(Method::POST, "/chat/completions", body).await;
    let mut reply = check_head(client, sent.map_err(Failure::Failed)?).await?;
    let mut stream = Stream { keep_text, ..Stream::default() };
    let mut parser = SseParser::default();
    while !stream.done {
        let Some(data) = reply.data().await else { break };
        let data = data
            .map_err(|error| Failure::Cut(format!("the stream broke off: {}", explain(&error))))?;
        let at = Instant::now();
        parser.feed(&data, |event| stream.event(event, || on_content(at)))?;
    }
    let done_at = Instant::now();
    if !stream.done {
        parser.finish(|event| stream.event(event, || on_content(done_at)))?;
    }
    if !stream.done {
        return Err(Failure::Cut("the stream ended without [DONE]".into()));
    }
    let end = async { while let Some(Ok(_)) = reply.data().await {} };
    if tokio::time::timeout(BODY_END_TIMEOUT, end).await.is_ok() {
        client.keep(reply);
    }
    Ok(Answer { text: stream.text, usage: stream.usage, done_at })
}

/// Gives back a response that is a stream of events.
async fn check_head(client: &Client, reply: Reply) -> Result<Reply, Failure> {
    let status = reply.response.status();
    let kind = reply.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or("without content type");
    if status == StatusCode::OK && kind.starts_with("text/event-stream") {
        return Ok(reply);
    }
    if status == StatusCode::OK {
        return Err(Failure::Failed(format!("the answer is no stream of events but {kind}")));
    }
    let body = client.whole(reply, ERROR_BODY_BYTES_MAX).await;
    let message = format!("HTTP {}: {}", status.as_u16(), error_in_body(&body));
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Failure::Rejected(message)
        }
        _ => Failure::Failed(message),
    })
}

#[derive(Default)]
struct Stream {
    keep_text: bool,
    text: String,
    usage: Option<Usage>,
    done: bool,
}

impl Stream {
    fn event(&mut self, data: &[u8], on_content: impl FnOnce()) -> Result<(), Failure> {
        if self.done {
            return Ok(());
        }
        if data == DONE {
            self.done = true;
            return Ok(());
        }
        let chunk = Chunk::read(data).map_err(Failure::Failed)?;
        if chunk.has_content {
            on_content();
        }
        if let Some(text) = chunk.text.filter(|_| self.keep_text) {
            self.text.push_str(&text);
        }
        self.usage = chunk.usage.or(self.usage);
        Ok(())
    }
}
