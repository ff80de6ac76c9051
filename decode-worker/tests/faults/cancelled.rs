//! The client goes in each state of a request: it cancels, its gateway's session ends, or the whole
//! decode worker dies.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::{Answer, Client};
use crate::proxy::{PROXY, Point, Proxy, asked};
use crate::system::{NOTICED, PROMPT_TOKENS, Plan, System, alone, request, via};

/// The steps under way, which end first, and one more in which nothing is done.
pub const CANCELLED: Duration = Duration::from_millis(10);

/// How far a request has come when its client goes.
#[derive(Clone, Copy, Debug)]
enum State {
    /// As far as this point of its handoff.
    Handoff(Point),
    Decoding,
    /// The handoff failed after the first token.
    ComputingHere,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Cancels,
    EndsItsSession,
    LosesTheDecodeWorker,
}

pub const WAYS: [Way; 3] = [Way::Cancels, Way::EndsItsSession, Way::LosesTheDecodeWorker];

impl Way {
    /// The client, if it still has its session.
    pub async fn go(self, system: &System, client: Client) -> Option<Client> {
        match self {
            Self::Cancels => {
                client.cancel(1).await;
                Some(client)
            }
            Self::EndsItsSession => None,
            Self::LosesTheDecodeWorker => {
                system.kill(&system.decode);
                system.cut(PROXY);
                None
            }
        }
    }
}

async fn check(state: State, way: Way) {
    println!("{way:?} at {state:?}");
    let (expected, took) = alone(&request(PROMPT_TOKENS)).await;
    let proxy = match state {
        State::Handoff(point) => Proxy::stopping_at(point),
        State::Decoding => Proxy::default(),
        State::ComputingHere => Proxy::stopping_at(Point::FirstToken),
    };
    let (system, mut client) = asked(Plan::default(), &proxy, request(PROMPT_TOKENS)).await;
    match state {
        State::Handoff(_) => proxy.reached().await,
        State::Decoding => client.has_tokens(1, 5).await,
        State::ComputingHere => {
            proxy.reached().await;
            system.cut(PROXY);
            sleep(Duration::from_millis(10)).await;
            assert!(system.decode.host().load().waiting_prompt_tokens > 0);
        }
    }
    // The last step's report.
    sleep(Duration::from_millis(1)).await;
    assert!(system.decode.blocks_used() > 0);
    let deadline = Instant::now() + CANCELLED;
    let client = way.go(&system, client).await;
    system.check_rest(deadline).await;

    if way == Way::LosesTheDecodeWorker {
        return;
    }
    let mut client = match client {
        Some(mut client) => {
            check_cut_short(&client.silent(1).await, &expected);
            client
        }
        None => Client::connect(&system).await,
    };
    proxy.go_on();
    let deadline = Instant::now() + took + NOTICED;
    client.ask(2, via(PROXY, request(PROMPT_TOKENS))).await;
    assert_eq!(client.ended(2).await, expected);
    system.check_rest(deadline).await;
}

fn check_cut_short(answer: &Answer, expected: &Answer) {
    assert_eq!(answer.end, None);
    assert!(answer.tokens.len() < expected.tokens.len());
    assert!(expected.tokens.starts_with(&answer.tokens));
}

#[tokio::test(start_paused = true)]
async fn a_client_goes_during_the_handoff() {
    for point in Point::ALL {
        for way in WAYS {
            check(State::Handoff(point), way).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_goes_after_the_handoff() {
    for state in [State::Decoding, State::ComputingHere] {
        for way in WAYS {
            check(state, way).await;
        }
    }
}
