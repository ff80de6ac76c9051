//! Source and reader are processes with agents of their own over UCX's tcp; one is killed in the
//! middle of a transfer. The other survives, and no agent outlives its owner.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::atomic::Ordering;

use common::process::{Process, ROLE, read_back, say, written};
use common::ucx::{BLOCK_BYTES, BLOCKS, Pair, agent, soon, strike, until_file_has_some};
use common::*;
use kv_transfer::tcp::{self, Right};
use kv_transfer::{Advice, Lease, LeaseLimits, TransferError, Way, Ways};
use rustix::process::Signal;
use tokio::task::block_in_place;
use tokio::time::Instant;

/// What this test binary runs as another process.
const TEST: &str = "undisturbed_processes_hand_blocks_over";

/// Stays until its input ends.
fn stay() {
    block_in_place(|| std::io::stdin().lines().for_each(drop));
}

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
    let (granted, _agent) = granted(&mut source);
    let mut reader = Process::start(TEST, &format!("reader {granted}"));
    let _agent = reader.hear();
    assert_eq!(reader.hear(), "Ok(()), true, 0 by another way");
}

fn all() -> Vec<u32> {
    (0..BLOCKS).rev().collect()
}

async fn source_of_all() -> (System, Lease) {
    let source = source(BLOCKS, layout(BLOCK_BYTES), LeaseLimits::default());
    let lease = lease(&source, &all());
    (System::new(Over::Ucx("tcp"), source).await, lease)
}

async fn be_source() {
    let (system, lease) = source_of_all().await;
    say(written(system.address(), lease));
    say(system.agent.as_ref().unwrap().process_id().unwrap());
    stay();
}

fn granted(source: &mut Process) -> (String, u32) {
    (source.hear(), source.hear().parse().unwrap())
}

/// Says its agent, and how it ended.
async fn be_reader(granted: &str) {
    let (address, lease) = read_back(granted);
    let mut destination = Destination::new(all(), layout(BLOCK_BYTES));
    let reader = agent(destination.memory(), "tcp").await;
    say(reader.process_id().unwrap());
    let ways = Ways { ucx: Some(reader.clone()), ..Ways::default() };
    let (way, copies, writer) = (Way::Ucx(address), copies(&all()), &mut destination.writer);
    let pulled = ways.pull(&way, &life(1), lease, &copies, writer, soon()).await;
    let failures = reader.status().failures.load(Ordering::Relaxed);
    let pulled = pulled.map(drop);
    say(format!("{pulled:?}, {}, {failures} by another way", destination.has(&copies)));
    stay();
}

/// Whether a process is there, and not only its remains.
fn lives(process: u32) -> bool {
    Path::new(&format!("/proc/{process}/exe")).exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_outlives_its_source() {
    let mut source = Process::start(TEST, "source");
    let (granted, source_agent) = granted(&mut source);
    let (address, lease) = read_back(&granted);
    let mut destination = Destination::new(all(), layout(BLOCK_BYTES));
    let memory = destination.memory().clone();
    let reader = agent(&memory, "tcp").await;
    let (worker, connections, copies) = (life(1), tcp::Connections::default(), copies(&all()));
    let right = Right { worker: &worker, lease };
    let writer = &mut destination.writer;
    let pulling = reader.pull(&connections, &address, right, &copies, writer, soon());
    let mut killed = None;
    let killing = async {
        until_file_has_some(&memory).await;
        source.strike(Signal::KILL);
        killed = Some(Instant::now());
    };
    let (pulled, ()) = tokio::join!(pulling, killing);
    let (error, took) = (pulled.unwrap_err(), killed.unwrap().elapsed());
    println!("source killed: {error:?} after {took:?}");
    let is_known = matches!(error, TransferError::Ucx(..) | TransferError::Broken(..));
    assert!(is_known, "{error:?}");
    assert!(matches!(error.advice(), Advice::RetryOther | Advice::RetrySame));
    assert!(took < PULL_MAX / 4, "{took:?}");
    eventually("its agent ends", || !lives(source_agent)).await;

    // Another source, the same reader.
    let (system, lease) = source_of_all().await;
    let right = Right { worker: &worker, lease };
    let writer = &mut destination.writer;
    let pulled = reader.pull(&connections, system.address(), right, &copies, writer, soon()).await;
    // Where UCX took the agent down with the source, the next one may not be there yet.
    if reader.status().lives.load(Ordering::Relaxed) == 1 {
        pulled.unwrap();
        assert!(destination.has(&copies));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_outlives_its_reader() {
    let (system, lease) = source_of_all().await;
    let mut reader = Process::start(TEST, &format!("reader {}", written(system.address(), lease)));
    let reader_agent = reader.hear().parse().unwrap();
    let status = system.sender.as_ref().unwrap().clone();
    let reads = || status.status().reads.load(Ordering::Relaxed);
    eventually("it reads", || reads() == 1).await;
    reader.strike(Signal::KILL);
    eventually("nothing is pinned", || reads() == 0).await;
    eventually("its agent ends", || !lives(reader_agent)).await;
    assert_eq!(system.source.leases.finish(now(), lease), Ok(()));

    let agent = system.agent.clone().unwrap();
    eventually("the source has an agent", || agent.process_id().is_some_and(lives)).await;
    let again = common::lease(&system.source, &all());
    let granted = written(system.address(), again);
    let mut next = Process::start(TEST, &format!("reader {granted}"));
    let _agent = next.hear();
    // By UCX, or where its agent was just going down, by tcp: in any case with the right bytes.
    let said = next.hear();
    assert!(said.starts_with("Ok(()), true"), "{said}");
}

/// File descriptors and resident bytes of another process.
fn held_by(process: u32) -> (usize, u64) {
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kibibytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (files, kibibytes << 10)
}

/// A reader's agent whose peers come and go, one after the other, each in the middle of a transfer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_die_leave_nothing_behind_in_an_agent() {
    let mut pair = Pair::large().await;
    let reader = pair.reader.clone();
    let process = reader.process_id().unwrap();
    let mut first = None;
    for _ in 0..8 {
        let system = System::new(Over::Ucx("tcp"), pair.system.source.clone()).await;
        pair.system = system;
        let memory = pair.destination.memory().clone();
        let pulling = pair.pull(soon());
        let gets = || reader.status().gets.load(Ordering::Relaxed);
        eventually("it reads", || gets() == 1).await;
        strike(pair.source_agent(), Signal::KILL);
        let (pulled, _) = pulling.await.unwrap();
        pulled.unwrap_err();
        let all = Vec::from_iter(0..BLOCKS);
        pair.destination = Destination::within(memory, all, layout(BLOCK_BYTES));
        let now = held_by(process);
        println!("{now:?}");
        first.get_or_insert(now);
    }
    assert_eq!(reader.process_id(), Some(process), "it is the same agent");
    let (files, bytes) = first.unwrap();
    // A connection that is refused costs one, until the agent ends for that.
    eventually("as few files", || held_by(process).0 <= files + 7).await;
    let grown = held_by(process).1.saturating_sub(bytes);
    assert!(grown < 4 << 20, "{grown} bytes more");
}
