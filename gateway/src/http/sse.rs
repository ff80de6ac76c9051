//! Server-sent events: an answer as a stream of chunks.
//!
//! Only `data:` lines and comments are written: widespread clients fail on `event:`, `id:` and
//! `retry:` lines here.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::chunks::Chunks;
use crate::generation::{Generation, Piece};
use crate::openai::ApiError;

/// A comment is sent after this long without news, so that proxies keep the connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// What a stream has to do with the rest of the server.
pub struct Ends {
    /// Its place among the requests under way, until it ends.
    pub _room: OwnedSemaphorePermit,
    /// When the server cannot wait for its end.
    pub cut: CancellationToken,
}

/// An answer whose first piece has come already. The client's going drops the generation, which
/// cancels it.
pub fn response(chunks: Chunks, first: Piece, generation: Generation, ends: Ends) -> Response {
    let mut opening = Events::default();
    opening.data(chunks.first(first.usage));
    let ended = opening.piece(&chunks, &first);
    let writer = Writer { chunks, generation, ends };
    let rest = (!ended).then_some(writer);
    let events = stream::unfold(Next { opening: Some(opening), rest }, next);
    head(Body::from_stream(events))
}

/// An answer that is complete.
pub fn finished(chunks: Chunks, piece: Piece) -> Response {
    let mut events = Events::default();
    events.data(chunks.first(piece.usage));
    events.piece(&chunks, &piece);
    head(Body::from(events.text))
}

fn head(body: Body) -> Response {
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        ("x-accel-buffering", "no"),
    ];
    (headers, body).into_response()
}

struct Next {
    opening: Option<Events>,
    rest: Option<Writer>,
}

struct Writer {
    chunks: Chunks,
    generation: Generation,
    ends: Ends,
}

async fn next(mut state: Next) -> Option<(Result<Bytes, std::convert::Infallible>, Next)> {
    if let Some(opening) = state.opening.take() {
        return Some((Ok(opening.text.into()), state));
    }
    let writer = state.rest.as_mut()?;
    let (bytes, ended) = writer.next().await;
    if ended {
        state.rest = None;
    }
    Some((Ok(bytes), state))
}

impl Writer {
    /// The next events, and whether they are the last.
    async fn next(&mut self) -> (Bytes, bool) {
        loop {
            let news = tokio::select! {
                biased;
                news = self.generation.next() => news,
                () = self.ends.cut.cancelled() => Err(ApiError::shutting_down()),
                () = tokio::time::sleep(KEEP_ALIVE_INTERVAL) => {
                    return (Bytes::from_static(KEEP_ALIVE), false);
                }
            };
            let mut events = Events::default();
            let ended = match news {
                Ok(Some(piece)) => events.piece(&self.chunks, &piece),
                Ok(None) => true,
                Err(error) => {
                    events.error(&error);
                    true
                }
            };
            // Text that is held back makes no chunk.
            if ended || !events.text.is_empty() {
                return (events.text.into(), ended);
            }
        }
    }
}

/// Events that go out together.
#[derive(Default)]
struct Events {
    text: String,
}

impl Events {
    fn data(&mut self, json: Option<String>) {
        if let Some(json) = json {
            self.text.push_str("data: ");
            self.text.push_str(&json);
            self.text.push_str("\n\n");
        }
    }

    /// Writes a piece; true if it is the last.
    fn piece(&mut self, chunks: &Chunks, piece: &Piece) -> bool {
        let logprobs = (!piece.logprobs.is_empty()).then_some(piece.logprobs.as_slice());
        if !piece.text.is_empty() || logprobs.is_some() {
            self.data(Some(chunks.text(&piece.text, logprobs, piece.usage)));
        }
        let Some(reason) = piece.finish else { return false };
        self.data(Some(chunks.finish(reason, piece.usage)));
        self.data(chunks.usage(piece.usage));
        self.text.push_str(DONE);
        true
    }

    fn error(&mut self, error: &ApiError) {
        self.data(Some(error.envelope().to_string()));
        self.text.push_str(DONE);
    }
}
