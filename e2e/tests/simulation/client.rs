//! A client of the simulated gateway: asks, reads, perhaps hangs up.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request as HttpRequest, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::model::NAME;
use crate::plan::Request;

/// A request that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(200);

/// One request's life, in time since the storm began.
#[derive(Debug)]
pub struct Run {
    pub began: Duration,
    pub ended: Duration,
    pub outcome: Outcome,
}

/// How a request ended, with its text.
#[derive(Debug)]
pub enum Outcome {
    /// With all of its text.
    Finished(String),
    /// With one error.
    Failed(String),
    /// Its client went.
    HungUp(String),
    /// In a way that none may: what was wrong.
    Broken(String),
}

/// Asks, and reads to the end or until it is time to go.
pub async fn run(app: axum::Router, request: &Request, storm_began: Instant) -> Run {
    let began = storm_began.elapsed();
    let mut text = String::new();
    let patience = request.hang_up.unwrap_or(DEADLINE);
    let answered = tokio::time::timeout(patience, ask(app, request, &mut text)).await;
    let outcome = match answered {
        Ok(outcome) => outcome,
        Err(_) if request.hang_up.is_some() => Outcome::HungUp(text),
        Err(_) => Outcome::Broken("it has no end".into()),
    };
    Run { began, ended: storm_began.elapsed(), outcome }
}

async fn ask(app: axum::Router, request: &Request, text: &mut String) -> Outcome {
    let body = json!({
        "model": NAME,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "stream": request.is_streamed,
    });
    let asked = HttpRequest::post("/v1/completions")
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let response = app.oneshot(asked).await.unwrap();
    let status = response.status();
    if status != StatusCode::OK {
        return match status {
            StatusCode::SERVICE_UNAVAILABLE => Outcome::Failed(String::new()),
            _ => Outcome::Broken(format!("status {status}")),
        };
    }
    if request.is_streamed {
        return read_events(response.into_body(), text).await;
    }
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    Outcome::Finished(answer["choices"][0]["text"].as_str().unwrap().to_string())
}

async fn read_events(mut body: Body, text: &mut String) -> Outcome {
    let (mut finishes, mut errors, mut dones) = (0, 0, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        let events = std::str::from_utf8(&data).unwrap().split_terminator("\n\n");
        for event in events.filter(|event| !event.starts_with(':')) {
            let data = event.strip_prefix("data: ").unwrap();
            if dones > 0 {
                return Outcome::Broken(format!("{data} after the end"));
            }
            if data == "[DONE]" {
                dones += 1;
                continue;
            }
            let chunk: Value = serde_json::from_str(data).unwrap();
            errors += usize::from(chunk["error"].is_object());
            let choice = &chunk["choices"][0];
            finishes += usize::from(choice["finish_reason"].is_string());
            text.push_str(choice["text"].as_str().unwrap_or_default());
        }
    }
    match (finishes, errors, dones) {
        (1, 0, 1) => Outcome::Finished(text.clone()),
        (0, 1, 1) => Outcome::Failed(text.clone()),
        ends => Outcome::Broken(format!("finishes, errors, ends: {ends:?}")),
    }
}
