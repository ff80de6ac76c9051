//! Server-sent events: an answer as a stream of chunks.
//!
//! Only `data:` lines and comments are written: widespread clients fail on `event:`, `id:` and
//! `retry:` lines here.
//!
//! A token goes out as soon as it comes. Where the socket is busy, what comes meanwhile goes out
//! together; how much that can be is bounded by the tokens that the request may have.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chunks::Chunks;
use crate::choices::{Choices, News};
use crate::openai::ApiError;

/// A comment is sent after this long without news, so that proxies keep the connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// What goes out together is no more than this, and one token's events.
const WRITE_BYTES: usize = 16 * 1024;

/// What a stream has to do with the rest of the server.
pub struct Ends {
    /// Its place among the requests under way, until it ends.
    pub _room: OwnedSemaphorePermit,
    /// When the server cannot wait for its end.
    pub cut: CancellationToken,
}

/// An answer whose first piece has come already. The client's going drops the choices, which
/// cancels them.
pub fn response(chunks: Chunks, first: News, choices: Choices, ends: Ends) -> Response {
    head(Body::from_stream(events(chunks, first, choices, ends)))
}

fn head(body: Body) -> Response {
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        ("x-accel-buffering", "no"),
    ];
    (headers, body).into_response()
}

fn events(
    mut chunks: Chunks,
    first: News,
    mut choices: Choices,
    ends: Ends,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    async_stream::stream! {
        let mut cut = pin!(ends.cut.clone().cancelled_owned());
        let mut keep_alive = pin!(tokio::time::sleep(KEEP_ALIVE_INTERVAL));
        let mut written = Instant::now();
        let mut news = Ok(Some(first));
        loop {
            let mut out = Vec::with_capacity(512);
            let mut ended = true;
            match news {
                Ok(Some(piece)) => {
                    chunks.news(&mut out, piece, choices.usage());
                    while out.len() < WRITE_BYTES && let Some(more) = choices.ready() {
                        chunks.news(&mut out, more, choices.usage());
                    }
                    ended = false;
                }
                Ok(None) => chunks.end(&mut out, choices.usage()),
                Err(error) => Chunks::error(&mut out, &error),
            }
            // Text that is held back makes no chunk.
            if !out.is_empty() {
                yield Ok(Bytes::from(out));
                written = Instant::now();
            }
            if ended {
                break;
            }
            news = loop {
                tokio::select! {
                    biased;
                    news = choices.next() => break news,
                    () = cut.as_mut() => break Err(ApiError::shutting_down()),
                    () = keep_alive.as_mut() => {
                        // Set anew here alone: a timer per token would cost more than the token.
                        if written.elapsed() >= KEEP_ALIVE_INTERVAL {
                            yield Ok(Bytes::from_static(KEEP_ALIVE));
                            written = Instant::now();
                        }
                        keep_alive.as_mut().reset(written + KEEP_ALIVE_INTERVAL);
                    }
                }
            };
        }
        drop(ends);
    }
}
