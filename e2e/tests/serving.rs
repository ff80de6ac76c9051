//! `stator serve` as a whole, over HTTP: answers do not depend on company, and nothing is left
//! behind.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use e2e::{Answer, System};
use futures::StreamExt;
use futures::future::join_all;
use serde_json::{Value, json};
use stator::cli::{EngineKind, ServeArgs};

/// Sixteen requests: greedy and sampled, short and long, some with a common beginning.
fn requests() -> Vec<Value> {
    let questions = [
        "What is prefill?",
        "What is decode?",
        "How do I add a worker?",
        "What is a KV block, and why are there blocks at all? Please explain it to me slowly.",
    ];
    let request = |index: usize| {
        let long =
            "Tell me all about serving. ".repeat(if index.is_multiple_of(3) { 40 } else { 0 });
        let content = format!("{long}{}", questions[index % questions.len()]);
        json!({
            "messages": [{"role": "user", "content": content}],
            "temperature": if index.is_multiple_of(2) { 0.0 } else { 1.0 },
            "seed": index,
            "max_tokens": 20 + 5 * index,
            "ignore_eos": index.is_multiple_of(5),
            "logprobs": true,
            "top_logprobs": 2,
        })
    };
    (0..16).map(request).collect()
}

/// What an answer is, apart from what the cache saved.
fn content(answer: &Answer) -> (&str, &str, &[Value]) {
    (&answer.text, &answer.finish_reason, &answer.logprobs)
}

/// Steps take what they are told to take, so that routing does not depend on this machine's load.
fn with_steady_steps(arguments: &mut ServeArgs) {
    arguments.engine.engine = EngineKind::Mock;
    arguments.engine.mock_prefill_us_per_token = Some(200.0);
    arguments.engine.mock_step_us = Some(500.0);
}

/// The request that follows an answer to `first`.
fn second_turn(first: &Value, answer: &Answer) -> Value {
    let messages = json!([
        first,
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": "Tell me more."},
    ]);
    json!({"messages": messages, "temperature": 0, "max_tokens": 30})
}

async fn check_company(adjust: impl FnOnce(&mut ServeArgs)) {
    let alone = System::start(|_| {}).await;
    let mut expected = Vec::new();
    for request in requests() {
        expected.push(alone.chat(request).await);
        alone.at_rest().await;
    }
    let system = System::start(adjust).await;
    let together = join_all(requests().into_iter().map(|request| system.chat(request))).await;
    for (index, (found, expected)) in together.iter().zip(&expected).enumerate() {
        assert!(!expected.text.is_empty());
        assert_eq!(content(found), content(expected), "request {index}");
    }
    system.at_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_streams_have_the_texts_they_have_alone() {
    check_company(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_steps_and_a_tiny_pool_change_nothing() {
    check_company(|arguments| {
        arguments.engine.max_num_batched_tokens = 48;
        arguments.engine.kv_blocks = Some(60);
        arguments.engine.max_num_seqs = 8;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_leaves_no_block_behind() {
    let system = System::start(|_| {}).await;
    for chunks_read in [1, 3, 10] {
        let endless = json!({
            "messages": [{"role": "user", "content": "Tell me everything. ".repeat(30)}],
            "stream": true, "ignore_eos": true, "max_tokens": 4000,
        });
        let response = system.send("chat/completions", endless).await;
        let mut events = response.bytes_stream();
        for _ in 0..chunks_read {
            events.next().await.unwrap().unwrap();
        }
        assert!(system.serving.decode.load().blocks.used > 0);
        drop(events);
        system.at_rest().await;
        assert_eq!(system.serving.decode.load().running, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_computed_by_the_prefill_worker_and_found_again() {
    let system = System::start(with_steady_steps).await;
    let first = json!({"role": "user", "content": "What is continuous batching? ".repeat(60)});
    let answer =
        system.chat(json!({"messages": [first], "temperature": 0, "max_tokens": 40})).await;
    assert_eq!(answer.usage["prompt_tokens_details"]["cached_tokens"], 0);
    system.at_rest().await;
    let cached = |host: &worker::EngineHost| host.load().blocks.cached as u64;
    let prompt_blocks = answer.usage["prompt_tokens"].as_u64().unwrap() / 16;
    assert_eq!(cached(&system.serving.prefill), prompt_blocks, "computed there");
    assert!(cached(&system.serving.decode) >= prompt_blocks, "and moved here");

    let answer = system.chat(second_turn(&first, &answer)).await;
    let cached_tokens = answer.usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached_tokens >= prompt_blocks * 16, "{cached_tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn salts_keep_caches_apart() {
    let system = System::start(|_| {}).await;
    let ask = |salt: &str| {
        let content = "What is continuous batching? ".repeat(10);
        let messages = json!([{"role": "user", "content": content}]);
        system.chat(json!({"messages": messages, "max_tokens": 2, "cache_salt": salt}))
    };
    let cached = |answer: &Answer| answer.usage["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(&ask("a").await), 0);
    assert_eq!(cached(&ask("b").await), 0);
    assert_ne!(cached(&ask("a").await), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_turns_find_what_the_first_left_behind() {
    let system = System::start(with_steady_steps).await;
    let topics = ["prefill", "decode", "TTFT", "a KV block", "chunked prefill", "a lease"];
    for topic in topics {
        let first = json!({"role": "user", "content": format!("{} is what?", topic.repeat(20))});
        let asked = json!({"messages": [first], "temperature": 0, "max_tokens": 30});
        let answer = system.chat(asked).await;
        system.at_rest().await;
        let answer = system.chat(second_turn(&first, &answer)).await;
        let cached = &answer.usage["prompt_tokens_details"]["cached_tokens"];
        assert!(cached.as_u64().unwrap() >= 16, "{topic}: {}", answer.route);
        system.at_rest().await;
    }
}
