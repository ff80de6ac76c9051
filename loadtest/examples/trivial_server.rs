//! A server that does nothing but stream: what a load generator is measured against.
//!
//!     cargo run --release -p loadtest --example trivial_server -- LISTEN EVENTS_PER_WRITE
//!
//! Each chat completion streams `max_tokens` events as fast as the client reads, so many of them
//! in one write. The chunks have the size and fields of Stator's.

use std::convert::Infallible;
use std::error::Error;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use futures::{Stream, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:8001".into());
    let events_per_write: usize = arguments.next().map_or(Ok(8), |text| text.parse())?;
    let app = Router::new()
        .route("/v1/models", get(|| async { json(&json!({ "data": [{ "id": "trivial" }] })) }))
        .route("/v1/chat/completions", post(chat))
        .with_state(events_per_write.max(1));
    let listener = TcpListener::bind(&listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _unset = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, app).await?)
}

async fn chat(State(events_per_write): State<usize>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let tokens = request["max_tokens"].as_u64().unwrap_or(16) as usize;
    let chunk = event(
        json!([{ "index": 0, "delta": { "content": "word " }, "logprobs": null,
        "finish_reason": null }]),
        Value::Null,
    );
    let batch = Bytes::from(chunk.repeat(events_per_write));
    let last_batch = Bytes::from(chunk.repeat(tokens % events_per_write));
    let end = end_of_stream(prompt_words(&request), tokens);
    let batches = std::iter::repeat_n(batch, tokens / events_per_write);
    let pieces = batches.chain([last_batch, end.into()]).filter(|piece| !piece.is_empty());
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(one_by_one(pieces))).into_response()
}

/// Each piece goes out in a write of its own: hyper joins what is there at once, so it is not.
fn one_by_one(
    pieces: impl Iterator<Item = Bytes>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(pieces, |mut pieces| async {
        tokio::task::yield_now().await;
        Some((Ok(pieces.next()?), pieces))
    })
}

fn end_of_stream(prompt_tokens: usize, tokens: usize) -> String {
    let finish = event(
        json!([{ "index": 0, "delta": {}, "logprobs": null,
        "finish_reason": "length" }]),
        Value::Null,
    );
    let usage = json!({ "prompt_tokens": prompt_tokens, "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens });
    format!("{finish}{}data: [DONE]\n\n", event(json!([]), usage))
}

fn event(choices: Value, usage: Value) -> String {
    let chunk = json!({ "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk", "created": 1_800_000_000, "model": "trivial",
        "system_fingerprint": "fp_0123456789abcdef", "choices": choices, "usage": usage });
    format!("data: {chunk}\n\n")
}

/// One token each, and three for a message.
fn prompt_words(request: &Value) -> usize {
    let messages = request["messages"].as_array().map_or(&[][..], Vec::as_slice);
    let words = |message: &Value| {
        3 + message["content"].as_str().unwrap_or_default().split_whitespace().count()
    };
    messages.iter().map(words).sum()
}

fn json(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
