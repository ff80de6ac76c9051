//! Pulls by UCX over its tcp: what happens to agents, peers and transfers, and what is left of it.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::ucx::*;
use common::*;
use kv_transfer::tcp::wire::{HEADER_BYTES, Header, Kind, ReadRequest, Refusal, Run, encode_frame};
use kv_transfer::tcp::{self, Right};
use kv_transfer::ucx::{ANSWER_MAX, Agent, Launch, SILENCE_MAX, UcxError};
use kv_transfer::{Advice, HostMemory, LeaseError, LeaseLimits, TCP, TransferError, Way, Ways};
use rustix::process::{Pid, Signal, getpgid, test_kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes of a pool that was pulled into, to see whether they stay as they are.
fn bytes(destination: &Destination) -> Vec<Vec<u8>> {
    (0..BLOCKS as usize).map(|block| destination.block(block)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_share_one_agent() {
    const READERS: u32 = 60;
    const EACH: u32 = 20;
    let layout = layout(64 << 10);
    let source = source(256, layout.clone(), LeaseLimits::default());
    let system = Arc::new(System::new(Over::Ucx("tcp"), source).await);
    let memory = HostMemory::shared((READERS * EACH) as usize, layout.block_bytes()).unwrap();
    let memory = Arc::new(memory);
    let agent = agent(&memory, "tcp").await;
    let ways = Ways { ucx: Some(agent.clone()), ..system.ways.clone() };
    let reader = |reader: u32| {
        let (system, ways, layout) = (system.clone(), ways.clone(), layout.clone());
        let places = (reader * EACH..(reader + 1) * EACH).collect();
        let mut destination = Destination::within(memory.clone(), places, layout);
        tokio::spawn(async move {
            let sources: Vec<u32> = (0..EACH).map(|n| (reader * 7 + n * 3) % 256).collect();
            let (lease, copies) = (lease(&system.source, &sources), copies(&sources));
            let way = ways.choose(&system.endpoints, &system.worker).unwrap();
            let writer = &mut destination.writer;
            ways.pull(&way, &system.worker, lease, &copies, writer, soon()).await.unwrap();
            assert_eq!(system.source.leases.finish(now(), lease), Ok(()));
            (destination, copies)
        })
    };
    for reader in (0..READERS).map(reader).collect::<Vec<_>>() {
        let (destination, copies) = reader.await.unwrap();
        assert!(destination.has(&copies));
    }
    let bytes = u64::from(READERS * EACH) * layout.block_bytes() as u64;
    assert_eq!(agent.status().bytes.load(Ordering::Relaxed), bytes, "all of it by UCX");
    assert_eq!(agent.status().gets.load(Ordering::Relaxed), 0);
    assert!(system.source.leases.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_agent_is_killed_in_a_transfer_is_read_by_tcp() {
    let mut pair = Pair::large().await;
    let memory = pair.destination.memory().clone();
    let pulling = pair.pull(soon());
    until_file_has_some(&memory).await;
    strike(pair.source_agent(), Signal::KILL);
    let began = Instant::now();
    let (pulled, destination) = pulling.await.unwrap();
    let error = pulled.unwrap_err();
    println!("source's agent killed: {error:?} after {:?}", began.elapsed());
    assert_eq!(error.advice(), Advice::RetryOther, "{error:?}");
    assert!(began.elapsed() < SILENCE_MAX + BUSY, "{:?}", began.elapsed());
    pair.destination = destination;
    pair.pull_by_any_way().await.unwrap();
    pair.destination.assert_holds(&pair.copies());

    // The next agent has other keys, and is read from like the first.
    until_back(pair.source_agent()).await;
    pair.destination = Destination::within(memory, Vec::from_iter(0..BLOCKS), layout(BLOCK_BYTES));
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    pulled.unwrap();
    assert!(destination.has(&pair.copies()));
    assert_eq!(pair.finish(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_agent_is_killed_in_a_transfer_goes_on_by_tcp() {
    let mut pair = Pair::large().await;
    let memory = pair.destination.memory().clone();
    let pulling = pair.pull(soon());
    until_file_has_some(&memory).await;
    strike(&pair.reader, Signal::KILL);
    let began = Instant::now();
    let (pulled, destination) = pulling.await.unwrap();
    assert!(matches!(pulled, Err(TransferError::Ucx(_, UcxError::Died))), "{pulled:?}");
    assert!(began.elapsed() < BUSY, "{:?}", began.elapsed());
    pair.destination = destination;
    pair.pull_by_any_way().await.unwrap();
    pair.destination.assert_holds(&pair.copies());
    until_back(&pair.reader).await;
    // The source's agent, whose peer died, serves whoever comes next, or the agent after it does.
    eventually("the source has an agent", || pair.source_agent().process_id().is_some()).await;
    let next = Destination::within(memory, Vec::from_iter(0..BLOCKS), layout(BLOCK_BYTES));
    pair.destination = next;
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    pulled.unwrap();
    assert!(destination.has(&pair.copies()));
    assert_eq!(pair.finish(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_fails_in_the_middle_is_done_by_tcp_at_once() {
    let mut pair = Pair::large().await;
    let (ways, copies, lease) = (pair.ways(), pair.copies(), pair.lease);
    let memory = pair.destination.memory().clone();
    let way = ways.choose(&pair.system.endpoints, &life(1)).unwrap();
    let mut destination =
        std::mem::replace(&mut pair.destination, Destination::new(vec![0], layout(16)));
    let (puller, wanted) = (ways.clone(), copies.clone());
    let pulling = tokio::spawn(async move {
        let (writer, deadline) = (&mut destination.writer, soon());
        let pulled = puller.pull(&way, &life(1), lease, &wanted, writer, deadline).await;
        (pulled, destination)
    });
    until_file_has_some(&memory).await;
    strike(&pair.reader, Signal::KILL);
    let (pulled, destination) = pulling.await.unwrap();
    pulled.unwrap();
    destination.assert_holds(&copies);
    assert_eq!(pair.reader.status().failures.load(Ordering::Relaxed), 1);
    assert_eq!(pair.finish(), Ok(()));
    until_back(&pair.reader).await;
    let next = ways.choose(&pair.system.endpoints, &life(1)).unwrap();
    assert!(matches!(next, Way::Tcp(_)), "the source is avoided for a while: {next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_agent_is_stopped_is_silent() {
    let mut pair = Pair::large().await;
    strike(pair.source_agent(), Signal::STOP);
    let began = Instant::now();
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    let took = began.elapsed();
    assert!(matches!(pulled, Err(TransferError::Silent(_))), "{pulled:?}");
    assert!((SILENCE_MAX..SILENCE_MAX + BUSY).contains(&took), "{took:?}");
    destination.assert_holds(&[]);
    // Its worker notices too, and has another.
    until_back(pair.source_agent()).await;
    pair.destination = destination;
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    pulled.unwrap();
    destination.assert_holds(&pair.copies());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_tried_in_vain_is_not_in_the_time_that_a_pull_took() {
    let mut pair = Pair::large().await;
    strike(pair.source_agent(), Signal::STOP);
    let began = Instant::now();
    let pulled = pair.pull_by_any_way().await.unwrap();
    let waited = began.elapsed();
    pair.destination.assert_holds(&pair.copies());
    assert_eq!(pulled.way, TCP);
    assert!(
        waited > SILENCE_MAX && pulled.took < waited - SILENCE_MAX / 2,
        "{pulled:?} {waited:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_agent_is_stopped_has_another() {
    let mut pair = Pair::large().await;
    strike(&pair.reader, Signal::STOP);
    let began = Instant::now();
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    let took = began.elapsed();
    assert!(matches!(pulled, Err(TransferError::Ucx(_, UcxError::Died))), "{pulled:?}");
    assert!(took < ANSWER_MAX + BUSY, "{took:?}");
    until_back(&pair.reader).await;
    pair.destination = destination;
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    pulled.unwrap();
    destination.assert_holds(&pair.copies());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_its_deadline_a_pull_writes_nothing_more() {
    let mut pair = Pair::large().await;
    let first = pair.reader.process_id();
    let (pulled, destination) =
        pair.pull(Instant::now() + Duration::from_millis(30)).await.unwrap();
    assert!(matches!(pulled, Err(TransferError::Deadline(_))), "{pulled:?}");
    let then = bytes(&destination);
    // A later transfer through the same agents would bring late bytes along.
    pair.destination = Destination::new(vec![0], layout(16));
    let memory = destination.memory().clone();
    let last = Destination::within(memory, vec![BLOCKS], layout(BLOCK_BYTES));
    let (mut last, wanted, worker) = (last, copies(&[0]), life(1));
    let right = Right { worker: &worker, lease: pair.lease };
    let (connections, address) = (&pair.system.ways.tcp, pair.system.address());
    let writer = &mut last.writer;
    let pulled = pair.reader.pull(connections, address, right, &wanted, writer, soon()).await;
    pulled.unwrap();
    assert!(last.has(&wanted));
    assert!(then == bytes(&destination), "bytes came after the end");
    assert_eq!(pair.reader.process_id(), first, "a deadline costs no agent");
    assert_eq!(pair.finish(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_dropped_writes_nothing_more() {
    let mut pair = Pair::large().await;
    let mut destination =
        std::mem::replace(&mut pair.destination, Destination::new(vec![0], layout(16)));
    let memory = destination.memory().clone();
    let (wanted, worker) = (pair.copies(), life(1));
    let right = Right { worker: &worker, lease: pair.lease };
    let (connections, address) = (&pair.system.ways.tcp, pair.system.address());
    let process = Pid::from_raw(pair.reader.process_id().unwrap() as i32).unwrap();
    tokio::select! {
        biased;
        pulled = pair.reader.pull(connections, address, right, &wanted, &mut destination.writer, soon()) => {
            panic!("{pulled:?}")
        }
        () = until_file_has_some(&memory) => {}
    }
    assert!(test_kill_process(process).is_err(), "the agent is gone when the future is");
    let then = bytes(&destination);
    let status = pair.system.sender.as_ref().unwrap();
    eventually("no pin", || status.status().reads.load(Ordering::Relaxed) == 0).await;
    until_back(&pair.reader).await;
    assert!(then == bytes(&destination), "bytes came after the end");
    assert_eq!(pair.finish(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_under_a_lease_that_expired_meanwhile_does_not_count() {
    let limits = LeaseLimits { duration: SILENCE_MAX / 4, ..LeaseLimits::default() };
    let mut pair = Pair::new(4, 64, limits).await;
    strike(pair.source_agent(), Signal::STOP);
    pair.lease = lease(&pair.system.source, &[0, 1, 2, 3]);
    let granted = now();
    let pulling = pair.pull(soon());
    let gets = || pair.reader.status().gets.load(Ordering::Relaxed);
    eventually("it reads", || gets() == 1).await;
    let leases = pair.system.source.leases.clone();
    eventually("the lease expires", || now() >= granted + limits.duration).await;
    strike(pair.source_agent(), Signal::CONT);
    let (pulled, _destination) = pulling.await.unwrap();
    let error = pulled.unwrap_err();
    assert!(matches!(error, TransferError::Lease(LeaseError::Expired)), "{error:?}");
    assert_eq!(leases.collect(now()), 0, "its blocks wait through the grace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_make_no_sense_are_an_error() {
    let mut pair = Pair::new(4, 64, LeaseLimits::default()).await;
    for keys in
        [vec![], vec![7; 100], [vec![0; 16], 4u32.to_le_bytes().into(), vec![1; 8]].concat()]
    {
        let (address, serving) = lend_wrongly(keys).await;
        let (wanted, worker) = (pair.copies(), life(1));
        let right = Right { worker: &worker, lease: pair.lease };
        let (connections, writer) = (tcp::Connections::default(), &mut pair.destination.writer);
        let pulled = pair.reader.pull(&connections, &address, right, &wanted, writer, soon()).await;
        let error = pulled.unwrap_err();
        assert!(matches!(error, TransferError::Ucx(..)), "{error:?}");
        serving.await.unwrap();
        pair.destination.assert_holds(&[]);
        eventually("an agent", || pair.reader.process_id().is_some()).await;
    }
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    pulled.unwrap();
    destination.assert_holds(&pair.copies());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_lent_by_an_agent_that_is_gone_does_not_count() {
    let pair = Pair::new(4, 64, LeaseLimits::default()).await;
    let mut stream = TcpStream::connect(pair.system.address()).await.unwrap();
    let runs = vec![Run { first: 0, blocks: 4 }];
    let (worker, layout) = (life(1), layout(64));
    let request = ReadRequest { worker, lease: pair.lease, layout, runs }.encode().unwrap();
    for (read, expected) in [(1, Kind::Done), (2, Kind::Refused)] {
        if read == 1 {
            assert_eq!(hear(&mut stream).await.0, Kind::Hello);
        }
        let asked = encode_frame(Kind::BorrowByUcx, read, &request);
        stream.write_all(&asked).await.unwrap();
        assert_eq!(hear(&mut stream).await.0, Kind::Lent);
        if expected == Kind::Refused {
            strike(pair.source_agent(), Signal::KILL);
            until_back(pair.source_agent()).await;
        }
        stream.write_all(&encode_frame(Kind::Returned, read, &[])).await.unwrap();
        let (kind, payload) = hear(&mut stream).await;
        assert_eq!(kind, expected);
        if kind == Kind::Refused {
            assert_eq!(Refusal::decode(&payload), Ok(Refusal::NotLent));
        }
    }
    assert_eq!(pair.finish(), Ok(()), "no pin is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_which_many_peers_failed_makes_room_for_another() {
    let mut pair = Pair::new(4, 64, LeaseLimits::default()).await;
    let dead = dead_keys(&pair).await;
    let (wanted, worker) = (pair.copies(), life(1));
    let first = pair.reader.process_id().unwrap();
    let mut failed = 0;
    while pair.reader.process_id() == Some(first) {
        let (address, serving) = lend_wrongly(dead.clone()).await;
        let right = Right { worker: &worker, lease: pair.lease };
        let (connections, writer) = (tcp::Connections::default(), &mut pair.destination.writer);
        let pulled = pair.reader.pull(&connections, &address, right, &wanted, writer, soon()).await;
        assert!(matches!(pulled, Err(TransferError::Ucx(..))), "{pulled:?}");
        serving.await.unwrap();
        failed += 1;
        if failed % 64 == 0 {
            let files = std::fs::read_dir(format!("/proc/{first}/fd"));
            println!("{failed} failed: {:?} files", files.map(|files| files.count()));
        }
        assert!(failed <= 300, "the same agent after {failed} failures");
    }
    assert!(failed >= 256, "another agent after {failed} failures");
    until_back(&pair.reader).await;
    let (pulled, destination) = pair.pull(soon()).await.unwrap();
    pulled.unwrap();
    destination.assert_holds(&pair.copies());
}

/// How the pool of an agent is reached that is dead then.
async fn dead_keys(pair: &Pair) -> Vec<u8> {
    let mut stream = TcpStream::connect(pair.system.address()).await.unwrap();
    assert_eq!(hear(&mut stream).await.0, Kind::Hello);
    let runs = vec![Run { first: 0, blocks: 4 }];
    let (worker, layout) = (life(1), layout(64));
    let request = ReadRequest { worker, lease: pair.lease, layout, runs };
    let asked = encode_frame(Kind::BorrowByUcx, 1, &request.encode().unwrap());
    stream.write_all(&asked).await.unwrap();
    let (kind, keys) = hear(&mut stream).await;
    assert_eq!(kind, Kind::Lent);
    strike(pair.source_agent(), Signal::KILL);
    until_back(pair.source_agent()).await;
    keys
}

async fn hear(stream: &mut TcpStream) -> (Kind, Vec<u8>) {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.unwrap();
    let header = Header::decode(&header).unwrap();
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (header.kind, payload)
}

/// A source that answers the first question with these keys.
async fn lend_wrongly(keys: Vec<u8>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let hello = encode_frame(Kind::Hello, 0, &(1u64 << 20).to_le_bytes());
        stream.write_all(&hello).await.unwrap();
        stream.read_exact(&mut [0; HEADER_BYTES]).await.unwrap();
        stream.write_all(&encode_frame(Kind::Lent, 1, &keys)).await.unwrap();
        let _until_it_goes = stream.read_to_end(&mut Vec::new()).await;
    });
    (address, serving)
}

#[tokio::test]
async fn a_source_without_an_agent_lends_nothing() {
    let source = source(4, layout(64), LeaseLimits::default());
    let system = System::new(Over::Tcp, source).await;
    let lease = lease(&system.source, &[0, 1, 2, 3]);
    let mut destination = Destination::new(vec![0, 1], layout(64));
    let agent = agent(destination.memory(), "tcp").await;
    let ways = Ways { ucx: Some(agent.clone()), ..system.ways.clone() };
    let way = Way::Ucx(system.address().to_string());
    let (wanted, writer) = (copies(&[3, 1]), &mut destination.writer);
    let pulled = ways.pull(&way, &life(1), lease, &wanted, writer, soon()).await.unwrap();
    destination.assert_holds(&wanted);
    assert_eq!(pulled.way, TCP);
    assert_eq!(agent.status().failures.load(Ordering::Relaxed), 1);
    // One that never had UCX does not say that it has.
    assert!(matches!(ways.choose(&system.endpoints, &life(2)), Ok(Way::Tcp(_))));
}

#[tokio::test]
async fn an_agent_that_cannot_begin_says_why() {
    let memory = Arc::new(HostMemory::shared(1, 64).unwrap());
    let no_library = std::env::temp_dir().join(format!("no-ucx-{}", std::process::id()));
    std::fs::create_dir_all(&no_library).unwrap();
    std::fs::write(no_library.join("libucp.so.0"), "").unwrap();
    let with = |name: &str, value: &str| {
        let mut launch = launch("tcp");
        launch.environment.push((name.into(), value.into()));
        launch
    };
    let missing = Launch { program: "/nonexistent".into(), ..launch("tcp") };
    let other = Launch { program: "/bin/true".into(), ..launch("tcp") };
    for (launch, expected) in [
        (missing, "cannot start the UCX agent"),
        (other, "process ended"),
        (with("LD_LIBRARY_PATH", no_library.to_str().unwrap()), "install UCX 1.13 or newer"),
        (with("UCX_TLS", "nonsense"), "UCX_TLS"),
    ] {
        let error = Agent::start(&memory.clone().into(), launch).await.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    std::fs::remove_dir_all(no_library).unwrap();
    let private = Arc::new(HostMemory::new(1, 64).unwrap());
    let error = Agent::start(&private.into(), launch("tcp")).await.err().unwrap();
    assert!(matches!(error, UcxError::NotShared), "{error:?}");
}

#[tokio::test]
async fn an_agent_ends_with_its_owner() {
    let memory = Arc::new(HostMemory::shared(1, 64).unwrap());
    let agent = agent(&memory, "tcp").await;
    let process = Pid::from_raw(agent.process_id().unwrap() as i32).unwrap();
    // Ctrl-C goes to all of a terminal's group.
    assert_ne!(getpgid(Some(process)).unwrap(), getpgid(None).unwrap());
    let clone = agent.clone();
    drop(agent);
    test_kill_process(process).unwrap();
    drop(clone);
    assert!(test_kill_process(process).is_err());
}
