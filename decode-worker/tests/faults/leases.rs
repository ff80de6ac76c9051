//! Leases that end before the blocks were read, or that are not the reader's.

use std::time::Duration;

use kv_transfer::LeaseLimits;
use protocol::v1::prefill_client::PrefillClient;
use protocol::v1::{self, prefill_event::Kind};
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::proxy::{Point, Proxy, asked};
use crate::system::{NOTICED, PREFILL, PROMPT_TOKENS, Plan, System, alone, request};

/// Points at which there is a lease that will be needed, and its reader waits for events.
const POINTS: [Point; 3] = [Point::Granted, Point::FirstBlocks, Point::FirstToken];

/// Some of the steps in which the prompt is computed.
const STEPS: Duration = Duration::from_millis(10);

/// A prefill worker that stops at a point for so long and then goes on: at rest within the time of a
/// worker alone from then on.
async fn check(plan: Plan, mut proxy: Proxy, stop: Duration, is_valid: bool) {
    proxy.keeps_alive = true;
    println!("stops at {:?} for {stop:?}", proxy.stops_at);
    let (expected, took) = alone(&request(PROMPT_TOKENS)).await;
    let (system, mut client) = asked(plan, &proxy, request(PROMPT_TOKENS)).await;
    proxy.reached().await;
    sleep(stop).await;
    proxy.go_on();
    let deadline = Instant::now() + took + NOTICED;
    sleep(STEPS).await;
    let computes_here = system.decode.host().load().waiting_prompt_tokens > 0;
    assert_eq!(computes_here, !is_valid);
    assert_eq!(client.ended(1).await, expected);
    system.check_rest(deadline).await;
    assert_eq!(client.silent(1).await, expected);
    assert_eq!(proxy.handoffs(), usize::from(is_valid));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_expired_does_not_count() {
    let LeaseLimits { duration, grace, .. } = LeaseLimits::default();
    for point in POINTS {
        // Blocks that are still there, and blocks that are someone else's.
        for stop in [duration + grace / 2, duration + 2 * grace] {
            let mut proxy = Proxy::stopping_at(point);
            proxy.holds_renewals = true;
            check(Plan::default(), proxy, stop, false).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_renewed_lives_up_to_its_cap() {
    for point in POINTS {
        let leases = LeaseLimits { cap: Duration::from_secs(40), ..LeaseLimits::default() };
        for (stop_s, is_valid) in [(39, true), (41, false)] {
            let plan = Plan { leases, ..Plan::default() };
            check(plan, Proxy::stopping_at(point), Duration::from_secs(stop_s), is_valid).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_capability_reads_nothing() {
    let mut proxy = Proxy::stopping_at(Point::Granted);
    proxy.changes_grant = |granted| granted.capability = vec![7; 16].into();
    check(Plan::default(), proxy, Duration::from_secs(1), false).await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_capability_neither_renews_nor_finishes() {
    let system = System::start(Plan::default()).await;
    let mut client = PrefillClient::new(system.connect(PREFILL).await);
    let call = v1::PrefillRequest {
        incarnation: 7,
        numerics_id: system.decode.host().layout().numerics_id.clone(),
        prompt_tokens: request(PROMPT_TOKENS).prompt_tokens,
        stopping: request(PROMPT_TOKENS).stopping,
        ..Default::default()
    };
    let mut events = client.prefill(call).await.unwrap().into_inner();
    let Some(Kind::Granted(granted)) = events.message().await.unwrap().unwrap().kind else {
        panic!("the lease comes first");
    };
    let shown =
        |capability: Vec<u8>| v1::LeaseRef { lease: granted.lease, capability: capability.into() };
    let forged = shown(vec![7; 16]);
    assert!(!client.renew_lease(forged.clone()).await.unwrap().into_inner().valid);
    assert!(!client.finish_lease(forged).await.unwrap().into_inner().valid);
    let cut_short = shown(vec![7; 15]);
    let refused = client.finish_lease(cut_short).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(system.leases(), 1);
    let finished = client.finish_lease(shown(granted.capability.to_vec())).await.unwrap();
    assert!(finished.into_inner().valid);
    system.check_rest(Instant::now() + NOTICED).await;
}
