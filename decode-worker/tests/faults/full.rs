//! Pools and queues that are full, on either side or on both.

use std::time::Duration;

use engine::{EngineConfig, SequenceRequest};
use kv_transfer::LeaseLimits;
use protocol::v1;
use protocol::v1::failure::Kind as FailureKind;
use tokio::time::{Instant, sleep, sleep_until};
use worker::{EngineHost, News, Reservation, SequenceHandle, outputs};

use crate::cancelled::{CANCELLED, Way};
use crate::client::{Answer, Client, End};
use crate::proxy::{PROXY, Proxy};
use crate::system::{
    BLOCK_SIZE, NOTICED, PROMPT_TOKENS, Plan, STANDSTILL_MAX, System, alone, request, via,
};

/// Others hold blocks so long that nothing else happens meanwhile.
const BUSY: Duration = Duration::from_secs(5);

/// Other sequences, which keep what they have until they are dropped.
#[derive(Default)]
struct Others {
    _blocks: Vec<Reservation>,
    _waiting: Vec<(SequenceHandle, News)>,
}

impl Others {
    /// Takes all blocks.
    async fn take_blocks(&mut self, host: &EngineHost) {
        let handle = host.new_sequence();
        let tokens = host.memory().blocks() * BLOCK_SIZE - 1;
        let request = others_request(&handle, tokens);
        let reserved = host.reserve(request, outputs(1).0, handle).await;
        self._blocks.push(reserved.unwrap());
    }

    /// Takes all blocks, and all places in the queue.
    async fn take_places(&mut self, host: &EngineHost, places: usize) {
        self.take_blocks(host).await;
        for _ in 0..places {
            let (handle, (outputs, news)) = (host.new_sequence(), outputs(64));
            let request = others_request(&handle, 1);
            host.generate(request, outputs).await.unwrap();
            self._waiting.push((handle, news));
        }
    }
}

fn others_request(handle: &SequenceHandle, prompt_tokens: usize) -> SequenceRequest {
    SequenceRequest {
        id: handle.id(),
        prompt: vec![1; prompt_tokens],
        generated: Vec::new(),
        sampling: v1::Sampling::default(),
        stopping: v1::Stopping { max_tokens: 1, ..Default::default() },
        cache_salt: "others".into(),
        grammar: None,
        prompt_logprobs: None,
        priority: 0,
    }
}

struct Case {
    name: &'static str,
    prefill_is_full: bool,
    decode_is_full: bool,
    /// When the others go, if before our answer.
    others_go: Option<Duration>,
    handoffs: usize,
    /// Beyond the time of a worker alone.
    rest: Duration,
}

#[tokio::test(start_paused = true)]
async fn pools_are_full() {
    let cases = [
        Case {
            name: "the prefill worker's, for a while: it is waited for",
            prefill_is_full: true,
            decode_is_full: false,
            others_go: Some(BUSY),
            handoffs: 1,
            rest: BUSY + NOTICED,
        },
        Case {
            name: "the prefill worker's, for good: the prompt stands still for too long",
            prefill_is_full: true,
            decode_is_full: false,
            others_go: None,
            handoffs: 0,
            rest: STANDSTILL_MAX + NOTICED,
        },
        Case {
            name: "the decode worker's: it computes once it has room",
            prefill_is_full: false,
            decode_is_full: true,
            others_go: Some(BUSY),
            handoffs: 0,
            rest: BUSY + NOTICED,
        },
        Case {
            name: "both: the decode worker computes once it has room",
            prefill_is_full: true,
            decode_is_full: true,
            others_go: Some(BUSY),
            handoffs: 0,
            rest: BUSY + NOTICED,
        },
    ];
    let (expected, took) = alone(&request(PROMPT_TOKENS)).await;
    for case in cases {
        println!("{}", case.name);
        let system = System::start(Plan::default()).await;
        let proxy = Proxy::default();
        proxy.serve(&system).await;
        let mut others = Others::default();
        if case.prefill_is_full {
            others.take_blocks(&system.prefill.host()).await;
        }
        if case.decode_is_full {
            others.take_blocks(&system.decode.host()).await;
        }
        let mut client = Client::connect(&system).await;
        let began = Instant::now();
        client.ask(1, via(PROXY, request(PROMPT_TOKENS))).await;
        if let Some(others_go) = case.others_go {
            sleep_until(began + others_go).await;
            others = Others::default();
        }
        assert_eq!(client.ended(1).await, expected);
        drop(others);
        system.check_rest(began + took + case.rest).await;
        assert_eq!(client.silent(1).await, expected);
        assert_eq!(proxy.handoffs(), case.handoffs);
    }
}

/// Waits for room on one side or on both, when its client goes.
async fn check_waiting(prefill_is_full: bool, decode_is_full: bool, way: Way) {
    println!("{way:?}, {prefill_is_full}, {decode_is_full}");
    let system = System::start(Plan::default()).await;
    Proxy::default().serve(&system).await;
    let (prefill, decode) = (system.prefill.host(), system.decode.host());
    let mut others = Others::default();
    if prefill_is_full {
        others.take_blocks(&prefill).await;
    }
    if decode_is_full {
        others.take_blocks(&decode).await;
    }
    let mut client = Client::connect(&system).await;
    client.ask(1, via(PROXY, request(PROMPT_TOKENS))).await;
    sleep(BUSY).await;
    let waiting = || prefill.load().waiting + decode.load().waiting;
    assert_eq!((waiting(), system.leases()), (1, usize::from(!decode_is_full)));
    let gone = Instant::now() + CANCELLED;
    let _client = way.go(&system, client).await;
    sleep_until(gone).await;
    assert_eq!((waiting(), system.leases()), (0, 0));
    drop((others, prefill, decode));
    system.check_rest(gone + CANCELLED).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_goes_while_it_waits() {
    for way in [Way::Cancels, Way::EndsItsSession] {
        for (prefill_is_full, decode_is_full) in [(true, false), (false, true), (true, true)] {
            check_waiting(prefill_is_full, decode_is_full, way).await;
        }
    }
}

/// A prefill worker that refuses at once: the decode worker computes at once.
async fn check_refused(plan: Plan, others: impl AsyncFnOnce(&System) -> Others) {
    let (expected, took) = alone(&request(PROMPT_TOKENS)).await;
    let system = System::start(plan).await;
    let proxy = Proxy::default();
    proxy.serve(&system).await;
    let others = others(&system).await;
    let mut client = Client::connect(&system).await;
    let began = Instant::now();
    client.ask(1, via(PROXY, request(PROMPT_TOKENS))).await;
    assert_eq!(client.ended(1).await, expected);
    drop(others);
    system.check_rest(began + took + NOTICED).await;
    assert_eq!(client.silent(1).await, expected);
    assert_eq!(proxy.handoffs(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_prefill_workers_queue_is_full() {
    let plan = Plan::default();
    let places = plan.prefill.waiting_sequences_max;
    check_refused(plan, async move |system| {
        let mut others = Others::default();
        others.take_places(&system.prefill.host(), places).await;
        others
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_prefill_worker_has_no_more_leases() {
    let leases = LeaseLimits { leases_max: 0, ..LeaseLimits::default() };
    check_refused(Plan { leases, ..Plan::default() }, async |_| Others::default()).await;
}

#[tokio::test(start_paused = true)]
async fn the_prefill_workers_pool_is_smaller_than_the_prompt() {
    let sizes = Plan::default().prefill;
    let prefill = EngineConfig { kv_blocks: PROMPT_TOKENS / BLOCK_SIZE, ..sizes };
    check_refused(Plan { prefill, ..Plan::default() }, async |_| Others::default()).await;
}

#[tokio::test(start_paused = true)]
async fn the_decode_workers_queue_is_full() {
    let system = System::start(Plan::default()).await;
    Proxy::default().serve(&system).await;
    let mut others = Others::default();
    let places = Plan::default().decode.waiting_sequences_max;
    others.take_places(&system.decode.host(), places).await;
    let mut client = Client::connect(&system).await;
    let began = Instant::now();
    client.ask(1, via(PROXY, request(PROMPT_TOKENS))).await;
    let overloaded = Answer { tokens: vec![], end: Some(End::Failed(FailureKind::Overloaded)) };
    assert_eq!(client.ended(1).await, overloaded);
    drop(others);
    system.check_rest(began + NOTICED).await;
    assert_eq!(client.silent(1).await, overloaded);
}

/// Both prompts fit, and both answers do not: one sequence is preempted, and computed again here.
#[tokio::test(start_paused = true)]
async fn the_decode_workers_pool_runs_full_after_the_handoff() {
    let blocks = PROMPT_TOKENS.div_ceil(BLOCK_SIZE);
    let decode = EngineConfig { kv_blocks: 2 * blocks + 1, ..Plan::default().decode };
    let system = System::start(Plan { decode, ..Plan::default() }).await;
    let proxy = Proxy::default();
    proxy.serve(&system).await;
    let mut client = Client::connect(&system).await;
    let other = v1::GenerateRequest { cache_salt: "other".into(), ..request(PROMPT_TOKENS - 1) };
    let requests = [request(PROMPT_TOKENS), other];
    let mut expected = Vec::new();
    for request in &requests {
        expected.push(alone(request).await);
    }
    let deadline = Instant::now() + 2 * (expected[0].1 + expected[1].1) + NOTICED;
    for (number, request) in (1..).zip(&requests) {
        client.ask(number, via(PROXY, request.clone())).await;
    }
    for (number, (expected, _)) in (1..).zip(&expected) {
        assert_eq!(client.ended(number).await, *expected);
    }
    system.check_rest(deadline).await;
    client.silent(1).await;
    assert_eq!(proxy.handoffs(), 2);
}
