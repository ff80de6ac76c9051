//! Source and reader are processes that use the GPUs of one host, each with a driver of its own that
//! shares memory and events with the other's.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::fake_cuda::{Fake, pool_with_content, write_later};
use common::process::{Process, ROLE, read_back, say, written};
use common::*;
use kv_transfer::cuda::Device;
use kv_transfer::{KvMemory, Lease, LeaseLimits, LocalSource, TransferError, Way, Ways, endpoints};
use rustix::process::Signal;
use tokio::task::block_in_place;
use tokio::time::Instant;

const BLOCKS: u32 = 32;
const BLOCK_BYTES: usize = 1 << 20;

/// What this test binary runs as another process.
const TEST: &str = "processes_hand_blocks_over_between_gpus";

/// Also what all tests here start as their processes, which then are in a role.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_hand_blocks_over_between_gpus() {
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
    assert_eq!(reader.hear(), "copying");
    assert_eq!(source.ask("reads"), "1", "pinned while it is read");
    assert_eq!(reader.ask("release"), "Ok(\"cuda\"), all blocks are right, mapped: 1");
    assert_eq!(source.ask("reads"), "0");
    assert_eq!(source.ask("finish"), "Ok(())");
    assert_eq!(reader.ask("end"), "left: []");
    assert_eq!(source.ask("end"), "left: []");
}

fn source_on(device: &Arc<Device>) -> Arc<LocalSource> {
    let memory = pool_with_content(device, BLOCKS, &layout(BLOCK_BYTES));
    // Longer than anything here takes.
    let duration = Duration::from_secs(100);
    let limits = LeaseLimits { duration, ..LeaseLimits::default() };
    source_in(memory.into(), layout(BLOCK_BYTES), limits)
}

/// Every second block first, so that no two are neighbours.
fn wanted() -> Vec<u32> {
    (0..BLOCKS).step_by(2).chain((1..BLOCKS).step_by(2)).collect()
}

/// Serves one lease, one of whose blocks a kernel is still to write, and answers questions.
async fn be_source() {
    let fake = Fake::new();
    let source = source_on(&fake.device(0));
    let KvMemory::Cuda(memory) = &source.memory else { panic!("it is on a GPU") };
    // SAFETY: nobody else has this memory yet; the default stream.
    unsafe {
        memory.write_blocks(3, &[0; BLOCK_BYTES]).unwrap();
        write_later(&fake, memory, 3, &content(3, BLOCK_BYTES));
        memory.record_written(std::ptr::null_mut()).unwrap();
    }
    let lease = lease(&source, &wanted());
    let mut system = System::new(Over::Cuda, source).await;
    say(written(system.address(), lease));
    let mut questions = std::io::stdin().lines();
    while let Some(Ok(question)) = block_in_place(|| questions.next()) {
        let sender = system.sender.as_ref().unwrap();
        match question.as_str() {
            "reads" => say(sender.status().reads.load(Ordering::Relaxed)),
            "finish" => say(format!("{:?}", system.source.leases.finish(now(), lease))),
            "end" => {
                system.stop().await;
                drop(system);
                eventually("nothing is left", || fake.left().is_empty()).await;
                return say(format!("left: {:?}", fake.left()));
            }
            other => panic!("asked for {other}"),
        }
    }
}

/// Pulls everything, and holds the copies until it is told to go on.
async fn be_reader(granted: &str) {
    let (address, lease) = read_back(granted);
    let fake = Fake::new();
    let device = fake.device(1);
    let ways = Ways::default();
    let mut destination = Destination::on(&device, wanted(), layout(BLOCK_BYTES));
    drop(fake.calls());
    fake.hold(true);
    let pulled = {
        let (copies, way) = (copies(&wanted()), Way::Cuda(address));
        let (worker, deadline) = (life(1), Instant::now() + PULL_MAX);
        let writer = &mut destination.writer;
        let pulling = ways.pull(&way, &worker, lease, &copies, writer, deadline);
        let releasing = async {
            let mut seen = Vec::new();
            eventually("copies are waited for", || {
                seen.extend(fake.calls());
                seen.iter().any(|call| call == "cuEventSynchronize")
            })
            .await;
            say("copying");
            block_in_place(|| std::io::stdin().lines().next());
            fake.hold(false);
        };
        let (pulled, ()) = tokio::join!(pulling, releasing);
        if pulled.is_ok() {
            destination.assert_holds(&copies);
        }
        pulled
    };
    let right = if pulled.is_ok() { "all blocks are right, " } else { "" };
    let pulled = pulled.map(|pulled| pulled.way);
    say(format!("{pulled:?}, {right}mapped: {}", ways.cuda.mappings()));
    block_in_place(|| std::io::stdin().lines().next());
    drop((destination, ways, device));
    eventually("nothing is left", || fake.left().is_empty()).await;
    say(format!("left: {:?}", fake.left()));
    block_in_place(|| std::io::stdin().lines().for_each(drop));
}

/// A source of this process, and a reader of another that has begun to copy.
async fn a_reader_that_copies() -> (Fake, System, Lease, Process) {
    let fake = Fake::new();
    let source = source_on(&fake.device(0));
    let lease = lease(&source, &wanted());
    let system = System::new(Over::Cuda, source).await;
    let granted = written(system.address(), lease);
    let mut reader = Process::start(TEST, &format!("reader {granted}"));
    assert_eq!(reader.hear(), "copying");
    (fake, system, lease, reader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_lets_go_of_what_a_killed_reader_had_borrowed() {
    let (fake, system, lease, mut reader) = a_reader_that_copies().await;
    let sender = system.sender.clone().unwrap();
    let reads = || sender.status().reads.load(Ordering::Relaxed);
    assert_eq!(reads(), 1);
    reader.strike(Signal::KILL);
    eventually("nothing is pinned", || reads() == 0).await;
    assert_eq!(system.source.leases.finish(now(), lease), Ok(()));
    drop((system, sender));
    eventually("nothing is left", || fake.left().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_reader_loses_its_loan_in_time_and_is_told_so() {
    let (_fake, system, lease, mut reader) = a_reader_that_copies().await;
    let sender = system.sender.clone().unwrap();
    let reads = || sender.status().reads.load(Ordering::Relaxed);
    reader.strike(Signal::STOP);
    eventually("nothing is pinned", || reads() == 0).await;
    assert_eq!(system.source.leases.finish(now(), lease), Ok(()));
    reader.strike(Signal::CONT);
    let pulled = reader.ask("release");
    assert!(pulled.starts_with("Err"), "it took what it had no right to any more: {pulled}");
    assert_eq!(reader.ask("end"), "left: []");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_unmaps_the_pool_of_a_killed_source() {
    let mut source = Process::start(TEST, "source");
    let (address, lease) = read_back(&source.hear());
    let fake = Fake::new();
    let device = fake.device(1);
    let ways = Ways::default();
    let mut destination = Destination::on(&device, wanted(), layout(BLOCK_BYTES));
    let way = ways.choose(&endpoints(&source_on(&device), None, &address), &life(1)).unwrap();
    assert_eq!(way, Way::Cuda(address));
    let copies = copies(&wanted());
    let mut pull = async || {
        let deadline = Instant::now() + PULL_MAX;
        ways.pull(&way, &life(1), lease, &copies, &mut destination.writer, deadline).await
    };
    pull().await.unwrap();
    assert_eq!(ways.cuda.mappings(), 1);
    source.strike(Signal::KILL);
    eventually("it is unmapped", || ways.cuda.mappings() == 0).await;
    let error = pull().await.unwrap_err();
    assert!(matches!(error, TransferError::Connect(..)), "{error:?}");
    destination.assert_holds(&copies);
    assert!(matches!(destination.memory, KvMemory::Cuda(_)));
    drop((destination, ways, device));
    eventually("nothing is left", || fake.left().is_empty()).await;
}
