//! A server that does what a test says, and the command line of a test's run.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use clap::Parser;
use futures::{StreamExt, stream};
use loadtest::{LoadtestError, Report};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub const TOKENS_PER_WORD: usize = 2;
pub const TOKENS_PER_MESSAGE: usize = 3;

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;
type Behaviour = dyn Fn(Value, usize) -> Answer + Send + Sync;

/// A server of one model. Calibration is answered by itself; a test's behaviour gets every other
/// request and its number.
pub struct Server {
    pub address: SocketAddr,
    state: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    behaviour: Box<Behaviour>,
    /// All but calibration's.
    requests: Mutex<Vec<Value>>,
    count: watch::Sender<usize>,
    connections: AtomicUsize,
}

impl Server {
    pub async fn start<F: Future<Output = Response> + Send + 'static>(
        behaviour: impl Fn(Value, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        let state = Arc::new(Shared {
            behaviour: Box::new(move |request, number| Box::pin(behaviour(request, number))),
            requests: Mutex::default(),
            count: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
        });
        let models = r#"{"data":[{"id":"first"},{"id":"second"}]}"#;
        let app = Router::new()
            .route("/v1/models", get(move || async move { models }))
            .route("/v1/chat/completions", post(chat))
            .with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counter = state.clone();
        let listener = listener.tap_io(move |_| {
            counter.connections.fetch_add(1, Ordering::Relaxed);
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, state, task }
    }

    /// Every request is answered with its `max_tokens` tokens.
    pub async fn answering() -> Self {
        Self::start(|request, _| async move { answer(&request) }).await
    }

    /// Whatever calibration did not send, in order of coming.
    pub fn requests(&self) -> Vec<Value> {
        self.state.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Waits for so many requests.
    pub async fn has_requests(&self, count: usize) {
        let mut counts = self.state.count.subscribe();
        counts.wait_for(|seen| *seen >= count).await.unwrap();
    }

    /// No connection is taken from now on.
    pub fn stop_accepting(&self) {
        self.task.abort();
    }

    /// Runs a load test of this server with these arguments.
    pub async fn run(&self, arguments: &str) -> Report {
        let arguments = format!("http://{} {arguments}", self.address);
        run(&arguments, std::future::pending()).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn chat(State(state): State<Arc<Shared>>, body: String) -> Response {
    let request: Value = serde_json::from_str(&body).unwrap();
    if request["max_tokens"] == 1 {
        return answer(&request);
    }
    let number = {
        let mut requests = state.requests.lock().unwrap();
        requests.push(request.clone());
        requests.len() - 1
    };
    state.count.send_replace(number + 1);
    (state.behaviour)(request, number).await
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: loadtest::Args,
}

pub fn parse(arguments: &str) -> Result<loadtest::Args, clap::Error> {
    let words = std::iter::once("loadtest").chain(arguments.split_whitespace());
    Command::try_parse_from(words).map(|command| command.args)
}

pub async fn run(
    arguments: &str,
    interrupted: impl Future<Output = ()>,
) -> Result<Report, LoadtestError> {
    loadtest::run(parse(arguments).unwrap(), interrupted).await
}

pub fn tokens_of(request: &Value) -> usize {
    let words = |message: &Value| message["content"].as_str().unwrap().split_whitespace().count();
    let messages = request["messages"].as_array().unwrap().iter();
    messages.map(|message| TOKENS_PER_MESSAGE + TOKENS_PER_WORD * words(message)).sum()
}

/// The whole stream: a role, `max_tokens` words, and the usage.
pub fn answer(request: &Value) -> Response {
    let tokens = request["max_tokens"].as_u64().unwrap() as usize;
    let words = (0..tokens).map(|index| content(&format!("w{index} ")));
    let usage = json!({ "choices": [], "usage": { "prompt_tokens": tokens_of(request),
        "completion_tokens": tokens, "prompt_tokens_details": { "cached_tokens": 1 } } });
    let role = event(&json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] }));
    let end = [event(&usage), "data: [DONE]\n\n".to_string()];
    events(&std::iter::once(role).chain(words).chain(end).collect::<Vec<_>>())
}

pub fn content(text: &str) -> String {
    event(&json!({ "choices": [{ "delta": { "content": text } }] }))
}

pub fn event(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

/// A stream of these events that ends in order.
pub fn events(events: &[String]) -> Response {
    let pieces: Vec<_> = events.iter().cloned().map(Ok::<_, Infallible>).collect();
    streamed(Body::from_stream(stream::iter(pieces)))
}

/// A stream that breaks off after these events.
pub fn broken(events: &[String]) -> Response {
    let pieces = stream::iter(events.to_vec()).map(Ok);
    let end = stream::once(async {
        // So that what came before is written.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("broken"))
    });
    streamed(Body::from_stream(pieces.chain(end)))
}

fn streamed(body: Body) -> Response {
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}
