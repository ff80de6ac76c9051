//! Helpers of the whole-system tests: a served model and a client that talks to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use futures::StreamExt;
use serde_json::{Value, json};
use stator::cli::{Cli, Command, ServeArgs};
use stator::serve::{Serving, start};

/// How long anything here may take at most.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a system may take to come to rest.
const REST_DEADLINE: Duration = Duration::from_secs(5);

/// The bundled model.
pub fn demo_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

/// A running system with the bundled model.
pub struct System {
    /// What runs.
    pub serving: Serving,
    client: reqwest::Client,
}

/// A streamed answer.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// All text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: String,
    /// Logprobs of all tokens, where they were asked for.
    pub logprobs: Vec<Value>,
    /// The usage chunk.
    pub usage: Value,
    /// Why it came from where it came.
    pub route: String,
}

impl System {
    /// Starts with the default arguments, changed by `adjust`, on a free port.
    pub async fn start(adjust: impl FnOnce(&mut ServeArgs)) -> Self {
        let model = demo_model();
        let words = ["stator", "serve", &model.to_string_lossy(), "--listen", "127.0.0.1:0"];
        let Command::Serve(mut arguments) = Cli::parse_from(words).command else {
            unreachable!("the words say serve")
        };
        adjust(&mut arguments);
        let serving = start(arguments).await.expect("the demo model is served");
        serving.ready().await;
        Self { serving, client: reqwest::Client::new() }
    }

    /// Sends a request to `/v1/{path}`; the model's name is added.
    pub async fn send(&self, path: &str, mut body: Value) -> reqwest::Response {
        body["model"] = json!(self.serving.model_name);
        let url = format!("http://{}/v1/{path}", self.serving.address);
        let request = self.client.post(url).header("x-stator-debug", "1").json(&body);
        let response = tokio::time::timeout(DEADLINE, request.send()).await;
        response.expect("an answer in time").expect("a connection")
    }

    /// Streams a chat answer to its end.
    pub async fn chat(&self, mut body: Value) -> Answer {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let response = self.send("chat/completions", body).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap_or_default());
        let route = response.headers()["x-stator-route"].to_str().expect("text").to_string();
        let mut events = response.bytes_stream();
        let (mut bytes, mut answer) = (Vec::new(), Answer { route, ..Default::default() });
        while let Some(more) = events.next().await {
            bytes.extend(more.expect("the stream goes on"));
        }
        let text = String::from_utf8(bytes).expect("UTF-8");
        let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        let chunks: Vec<&str> = data.collect();
        assert_eq!(chunks.last(), Some(&"[DONE]"), "{text}");
        for chunk in &chunks[..chunks.len() - 1] {
            answer.add(&serde_json::from_str(chunk).expect("JSON"));
        }
        answer
    }

    /// Waits until no worker uses a block, and checks that none is lost. An engine frees blocks
    /// between two steps; the deadline is for the connection's end to be noticed.
    pub async fn at_rest(&self) {
        let rest = async {
            for host in [&self.serving.prefill, &self.serving.decode] {
                while host.load().blocks.used > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let blocks = host.load().blocks;
                assert_eq!(blocks.free + blocks.cached, host.memory().blocks());
            }
        };
        tokio::time::timeout(REST_DEADLINE, rest).await.expect("all blocks are let go");
    }
}

impl Answer {
    fn add(&mut self, chunk: &Value) {
        assert_eq!(chunk["error"], Value::Null, "{chunk}");
        let choice = &chunk["choices"][0];
        self.text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        self.finish_reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        let logprobs = choice["logprobs"]["content"].as_array();
        self.logprobs.extend(logprobs.into_iter().flatten().cloned());
        if chunk["usage"].is_object() {
            self.usage = chunk["usage"].clone();
        }
    }
}
