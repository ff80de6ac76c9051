//! Requests that end with their first token, while their handoff still goes on.

use std::time::Duration;

use protocol::v1::{self, Sampling, Stopping};
use tokio::time::{Instant, sleep};

use crate::proxy::{PROXY, Point, Proxy, asked};
use crate::system::{LEASE_GONE, NOTICED, PROMPT_TOKENS, Plan, alone, request};

fn one_token_request(prompt_tokens: usize) -> v1::GenerateRequest {
    let stopping = Some(Stopping { max_tokens: 1, ..Default::default() });
    v1::GenerateRequest { stopping, ..request(prompt_tokens) }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_dies() {
    let (expected, took) = alone(&one_token_request(PROMPT_TOKENS)).await;
    for point in [Point::Call, Point::Granted, Point::FirstBlocks, Point::FirstToken] {
        println!("{point:?}");
        let proxy = Proxy::stopping_at(point);
        let one_token = one_token_request(PROMPT_TOKENS);
        let (system, mut client) = asked(Plan::default(), &proxy, one_token).await;
        proxy.reached().await;
        let deadline = Instant::now() + took + NOTICED;
        system.kill(&system.prefill);
        system.cut(PROXY);
        assert_eq!(client.ended(1).await, expected);
        system.check_rest(deadline).await;
        assert_eq!(client.silent(1).await, expected);
    }
}

/// Its session waits for the gateway, so that the request goes on after its end.
#[tokio::test(start_paused = true)]
async fn a_lease_ends_while_the_gateway_does_not_read() {
    // Frames of 100 KB fill all buffers on the way.
    let sampling = Some(Sampling { logprobs: Some(10_000), ..Default::default() });
    let stopping = Some(Stopping { max_tokens: 200, ..Default::default() });
    let flood = v1::GenerateRequest { sampling, stopping, ..request(1) };
    // One chunk: its token comes before its blocks, none of which is read then.
    let one_token = one_token_request(20);
    let (expected, _) = alone(&one_token).await;

    let mut proxy = Proxy::stopping_at(Point::Granted);
    proxy.holds_renewals = true;
    let (system, mut client) = asked(Plan::default(), &proxy, one_token).await;
    client.ask(2, flood).await;
    proxy.reached().await;
    sleep(LEASE_GONE).await;
    proxy.go_on();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(client.ended(1).await, expected);
    assert_eq!(client.ended(2).await.tokens.len(), 200);
    system.check_rest(Instant::now() + NOTICED).await;
    assert_eq!(client.silent(1).await, expected);
}
