//! Source and reader are processes; one is killed or stopped in each state of a pull, and the other
//! has an error in time and lets go of everything.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::process::{Process, ROLE, read_back, say, written};
use common::proxy::{Fault, Gate, Proxy, Script};
use common::*;
use kv_transfer::tcp::wire::HEADER_BYTES;
use kv_transfer::{Lease, LeaseLimits, TransferError, Way, Ways};
use rustix::process::Signal;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::Instant;

/// More bytes than the sockets of two hops hold, so that the source is still sending when the
/// reader has had little.
const BLOCKS: u32 = 32;
const BLOCK_BYTES: usize = 1 << 20;

const HELLO: usize = HEADER_BYTES + 8;
const FRAME: usize = HEADER_BYTES + BLOCK_BYTES;

/// The survivor knows after one limit, or connecting's and one more, and what a busy machine adds.
const KNOWN_MAX: Duration = Duration::from_secs(4);

/// What this test binary runs as another process.
const TEST: &str = "undisturbed_processes_hand_blocks_over";

/// When the other side is struck.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    BeforeHello,
    Requested,
    InAFrame,
    BetweenFrames,
    AfterTheLast,
}

impl State {
    const ALL: [Self; 5] = [
        Self::BeforeHello,
        Self::Requested,
        Self::InAFrame,
        Self::BetweenFrames,
        Self::AfterTheLast,
    ];

    /// The byte before which the path holds.
    fn at(self) -> usize {
        match self {
            Self::BeforeHello => 0,
            Self::Requested => HELLO,
            Self::InAFrame => HELLO + HEADER_BYTES + BLOCK_BYTES / 3,
            Self::BetweenFrames => HELLO + 2 * FRAME,
            Self::AfterTheLast => usize::MAX,
        }
    }
}

const STRIKES: [Signal; 2] = [Signal::KILL, Signal::STOP];

/// Also what all tests here start as their processes, which then are in a role.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undisturbed_processes_hand_blocks_over() {
    let Ok(role) = std::env::var(ROLE) else { return hand_over().await };
    match role.split_once(' ') {
        None if role == "source" => be_source().await,
        Some(("reader", granted)) => be_reader(granted).await,
        _ => panic!("no role is {role}"),
    }
}

async fn hand_over() {
    let mut source = Process::start(TEST, "source");
    let granted = source.hear();
    let mut reader = Process::start(TEST, &format!("reader {granted}"));
    assert_eq!(reader.hear(), "Ok(())");
    assert_eq!(source.ask("reads"), "0");
    assert_eq!(source.ask("finish"), "Ok(())");
}

fn all_blocks() -> Arc<kv_transfer::LocalSource> {
    source(BLOCKS, layout(BLOCK_BYTES), LeaseLimits::default())
}

/// Serves one lease, and answers questions until its input ends.
async fn be_source() {
    let source = all_blocks();
    let lease = lease(&source, &wanted());
    let system = System::new(Over::Tcp, source).await;
    say(written(system.address(), lease));
    let mut questions = std::io::stdin().lines();
    while let Some(Ok(question)) = block_in_place(|| questions.next()) {
        let sender = system.sender.as_ref().unwrap();
        match question.as_str() {
            "reads" => say(sender.status().reads.load(Ordering::Relaxed)),
            "finish" => say(format!("{:?}", system.source.leases.finish(now(), lease))),
            other => panic!("asked for {other}"),
        }
    }
}

/// Pulls everything, says how that ended, and stays until its input ends.
async fn be_reader(granted: &str) {
    let (address, lease) = read_back(granted);
    let ways = Ways::default();
    let (pulled, _) = pull(&ways, address, lease).await.unwrap();
    say(format!("{pulled:?}"));
    block_in_place(|| std::io::stdin().lines().for_each(drop));
}

/// Every second block first, so that no two are neighbours.
fn wanted() -> Vec<u32> {
    (0..BLOCKS).step_by(2).chain((1..BLOCKS).step_by(2)).collect()
}

type Pulled = (Result<(), TransferError>, Destination);

fn pull(ways: &Ways, address: String, lease: Lease) -> JoinHandle<Pulled> {
    let (ways, way) = (ways.clone(), Way::Tcp(address));
    tokio::spawn(async move {
        let mut destination = Destination::new(Vec::from_iter(0..BLOCKS), layout(BLOCK_BYTES));
        let (copies, deadline) = (copies(&wanted()), Instant::now() + PULL_MAX);
        let writer = &mut destination.writer;
        let pulled = ways.pull(&way, &life(1), lease, &copies, writer, deadline).await;
        (pulled.map(drop), destination)
    })
}

async fn held_path(source: String, state: State) -> (Proxy, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let script = Script { at: state.at(), fault: Fault::Hold(gate.clone()) };
    (Proxy::start(source, script).await, gate)
}

/// The source is struck; the reader survives.
async fn strike_source(signal: Signal, state: State) {
    let mut source = Process::start(TEST, "source");
    let (address, lease) = read_back(&source.hear());
    let (proxy, gate) = held_path(address.clone(), state).await;
    let ways = Ways::default();
    let began;
    let pulling = match state {
        // What has said hello cannot be held before it any more.
        State::BeforeHello => {
            source.strike(signal);
            began = Instant::now();
            gate.open();
            pull(&ways, proxy.address.clone(), lease)
        }
        State::AfterTheLast => {
            let (pulled, destination) = pull(&ways, proxy.address.clone(), lease).await.unwrap();
            pulled.unwrap();
            destination.assert_holds(&copies(&wanted()));
            source.strike(signal);
            began = Instant::now();
            pull(&ways, proxy.address.clone(), lease)
        }
        _ => {
            let pulling = pull(&ways, proxy.address.clone(), lease);
            gate.reached().await;
            while source.ask("reads") == "0" {
                tokio::task::yield_now().await;
            }
            source.strike(signal);
            began = Instant::now();
            gate.open();
            pulling
        }
    };
    let (pulled, _destination) = pulling.await.unwrap();
    let (error, took) = (pulled.unwrap_err(), began.elapsed());
    println!("source {signal:?} {state:?}: {error} after {took:?}");
    let expected = match (signal, state) {
        (_, State::BeforeHello) => matches!(error, TransferError::Connect(..)),
        (Signal::STOP, _) => matches!(error, TransferError::Silent(_)),
        (_, State::AfterTheLast) => matches!(error, TransferError::Connect(..)),
        _ => matches!(error, TransferError::Broken(..)),
    };
    assert!(expected, "{signal:?} {state:?}: {error:?}");
    assert!(took < KNOWN_MAX, "{signal:?} {state:?}: {took:?}");
    assert_eq!(ways.tcp.pulls(), 0);
    if signal == Signal::STOP {
        source.strike(Signal::CONT);
        let deadline = Instant::now() + KNOWN_MAX;
        while source.ask("reads") != "0" {
            assert!(Instant::now() < deadline, "{state:?}: a pin is left");
        }
        let (pulled, destination) = pull(&ways, address, lease).await.unwrap();
        pulled.unwrap();
        destination.assert_holds(&copies(&wanted()));
        assert_eq!(source.ask("finish"), "Ok(())", "{state:?}");
    }
}

/// The reader is struck; the source survives.
async fn strike_reader(signal: Signal, state: State) {
    let system = System::new(Over::Tcp, all_blocks()).await;
    let status = system.sender.as_ref().unwrap().clone();
    let reads = || status.status().reads.load(Ordering::Relaxed);
    let lease = lease(&system.source, &wanted());
    let (proxy, gate) = held_path(system.address().to_string(), state).await;
    let mut reader = Process::start(TEST, &format!("reader {}", written(&proxy.address, lease)));
    match state {
        State::AfterTheLast => assert_eq!(reader.hear(), "Ok(())"),
        State::BeforeHello => gate.reached().await,
        _ => {
            gate.reached().await;
            eventually("a read", || reads() == 1).await;
        }
    }
    reader.strike(signal);
    let began = Instant::now();
    gate.open();
    eventually("nothing is pinned", || reads() == 0).await;
    if signal == Signal::KILL {
        let connections = || status.status().connections.load(Ordering::Relaxed);
        eventually("the connection is closed", || connections() == 0).await;
    }
    let took = began.elapsed();
    println!("reader {signal:?} {state:?}: all let go after {took:?}");
    assert!(took < KNOWN_MAX, "{signal:?} {state:?}: {took:?}");
    assert_eq!(system.source.leases.finish(now(), lease), Ok(()), "{signal:?} {state:?}");
    assert!(system.source.leases.is_empty());
    if signal == Signal::STOP && !matches!(state, State::BeforeHello | State::AfterTheLast) {
        reader.strike(Signal::CONT);
        let said = reader.hear();
        assert!(said.starts_with("Err"), "{state:?}: it took what was cut off: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_survives_its_source() {
    for signal in STRIKES {
        for state in State::ALL {
            strike_source(signal, state).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_survives_its_readers() {
    for signal in STRIKES {
        for state in State::ALL {
            strike_reader(signal, state).await;
        }
    }
}
