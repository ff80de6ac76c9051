//! What one of the two workers refuses.

use std::time::Duration;

use protocol::v1::failure::Kind as FailureKind;
use protocol::v1::prefill_client::PrefillClient;
use protocol::v1::{self, Stopping};
use tokio::time::Instant;
use tonic::Code;

use crate::client::{Answer, Client, End};
use crate::proxy::{PROXY, Proxy};
use crate::system::{
    BLOCK_SIZE, NOTICED, PREFILL, PROMPT_TOKENS, Plan, System, VOCABULARY, alone, request, via,
};

#[tokio::test(start_paused = true)]
async fn a_call_to_another_life_or_of_other_numerics_is_refused() {
    let changes: [fn(&mut v1::PrefillRequest); 4] = [
        |call| call.incarnation = 6,
        |call| call.incarnation = 8,
        |call| call.numerics_id = "other".into(),
        |call| call.numerics_id.clear(),
    ];
    let (expected, took) = alone(&request(PROMPT_TOKENS)).await;
    for changes_call in changes {
        let system = System::start(Plan::default()).await;
        let mut call = v1::PrefillRequest {
            incarnation: 7,
            numerics_id: system.decode.host().layout().numerics_id.clone(),
            ..Default::default()
        };
        changes_call(&mut call);
        let mut direct = PrefillClient::new(system.connect(PREFILL).await);
        assert_eq!(direct.prefill(call).await.unwrap_err().code(), Code::FailedPrecondition);

        let mut proxy = Proxy::default();
        proxy.changes_call = changes_call;
        proxy.serve(&system).await;
        let mut client = Client::connect(&system).await;
        let deadline = Instant::now() + took + NOTICED;
        client.ask(1, via(PROXY, request(PROMPT_TOKENS))).await;
        assert_eq!(client.ended(1).await, expected);
        system.check_rest(deadline).await;
        assert_eq!(client.silent(1).await, expected);
        assert_eq!(system.prefill.host().load().blocks.cached, 0, "it has computed nothing");
    }
}

/// Refused without a step.
const REFUSED: Duration = Duration::from_millis(10);

#[tokio::test(start_paused = true)]
async fn an_invalid_request_fails_once_whoever_was_to_compute_its_prompt() {
    let pool_tokens = Plan::default().decode.kv_blocks * BLOCK_SIZE;
    let valid = request(PROMPT_TOKENS);
    let not_a_token = VOCABULARY as u32;
    let requests = [
        ("an empty prompt", request(0)),
        ("a prompt that fills the pool", request(pool_tokens)),
        ("a prompt beyond the pool", request(2 * pool_tokens)),
        ("no token wanted", v1::GenerateRequest { stopping: None, ..valid.clone() }),
        (
            "no token wanted, others stated",
            v1::GenerateRequest {
                stopping: Some(Stopping { max_tokens: 0, min_tokens: 3, ..Default::default() }),
                ..valid.clone()
            },
        ),
        (
            "a token out of the vocabulary",
            v1::GenerateRequest { prompt_tokens: vec![1, 2, not_a_token], ..valid },
        ),
    ];
    let failed = Answer { tokens: Vec::new(), end: Some(End::Failed(FailureKind::Invalid)) };
    let system = System::start(Plan::default()).await;
    let proxy = Proxy::default();
    proxy.serve(&system).await;
    let mut client = Client::connect(&system).await;
    for (number, (name, invalid)) in (1..).step_by(2).zip(requests) {
        let deadline = Instant::now() + REFUSED;
        client.ask(number, invalid.clone()).await;
        client.ask(number + 1, via(PROXY, invalid)).await;
        assert_eq!(client.ended(number).await, failed, "{name}");
        assert_eq!(client.ended(number + 1).await, failed, "{name}");
        system.check_rest(deadline).await;
        client.silent(number).await;
    }
}
