//! The prefill worker dies, is cut off, or says nothing more, at each point.

use protocol::SILENCE_MAX;
use tokio::time::Instant;

use crate::proxy::{PROXY, Point, Proxy, asked};
use crate::system::{NOTICED, PREFILL, PROMPT_TOKENS, Plan, alone, request, via};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Dies,
    IsCutOff,
    IsSilent,
    /// It says nothing more and hears nothing more.
    Hangs,
}

/// A handoff that fails at a point, and then another.
async fn check(point: Point, fault: Fault) {
    println!("{fault:?} at {point:?}");
    let (expected, took) = alone(&request(PROMPT_TOKENS)).await;
    let mut proxy = Proxy::stopping_at(point);
    proxy.holds_renewals = fault == Fault::Hangs;
    let (system, mut client) = asked(Plan::default(), &proxy, request(PROMPT_TOKENS)).await;
    proxy.reached().await;
    let began = Instant::now();
    let rest = match fault {
        Fault::Dies | Fault::IsCutOff => began + took + NOTICED,
        Fault::IsSilent | Fault::Hangs => began + SILENCE_MAX + took + NOTICED,
    };
    match fault {
        Fault::Dies => {
            system.kill(&system.prefill);
            system.cut(PROXY);
        }
        Fault::IsCutOff => {
            system.cut(PREFILL);
            system.cut(PROXY);
        }
        Fault::IsSilent | Fault::Hangs => {}
    }
    assert_eq!(client.ended(1).await, expected);
    system.check_rest(rest).await;
    assert_eq!(client.silent(1).await, expected);

    let (is_dead, handoffs) = (fault == Fault::Dies, proxy.handoffs());
    proxy.go_on();
    let began = Instant::now();
    client.ask(2, via(PROXY, request(PROMPT_TOKENS))).await;
    assert_eq!(client.ended(2).await, expected);
    system.check_rest(began + took + NOTICED).await;
    assert_eq!(proxy.handoffs() - handoffs, usize::from(!is_dead));
}

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_dies() {
    for point in Point::ALL {
        check(point, Fault::Dies).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_is_cut_off() {
    for point in Point::ALL {
        check(point, Fault::IsCutOff).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_says_nothing_more() {
    for point in Point::ALL {
        check(point, Fault::IsSilent).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_neither_says_nor_hears_anything_more() {
    for point in Point::ALL {
        check(point, Fault::Hangs).await;
    }
}
