//! Pulls over real sockets: what can happen on the way, and to connections.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::proxy::{Fault, Gate, Proxy, Script};
use common::*;
use kv_transfer::tcp::wire::HEADER_BYTES;
use kv_transfer::{
    Advice, Lease, LeaseLimits, LocalPools, TransferError, TransferFaults, Way, Ways, tcp,
};
use protocol::WorkerLife;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

const BLOCK_BYTES: usize = 256;

/// What comes before the first frame of blocks.
const HELLO: usize = HEADER_BYTES + 8;

/// One block and its header.
const FRAME: usize = HEADER_BYTES + BLOCK_BYTES;

/// No two neighbours: each block is a frame.
const WANTED: [u32; 3] = [4, 2, 0];

async fn tcp_system(blocks: u32, block_bytes: usize) -> System {
    let source = source(blocks, layout(block_bytes), LeaseLimits::default());
    System::new(Over::Tcp, source).await
}

fn destination() -> Destination {
    Destination::new(vec![0, 1, 2], layout(BLOCK_BYTES))
}

async fn pull(
    ways: &Ways,
    address: &str,
    lease: Lease,
    destination: &mut Destination,
) -> Result<(), TransferError> {
    let (way, deadline) = (Way::Tcp(address.to_string()), Instant::now() + PULL_MAX);
    let writer = &mut destination.writer;
    ways.pull(&way, &life(1), lease, &copies(&WANTED), writer, deadline).await.map(drop)
}

/// Pulls over a path with a fault, then over a good one into the same blocks.
async fn check(at: usize, fault: Fault, expected: fn(&TransferError) -> bool) {
    let system = tcp_system(5, BLOCK_BYTES).await;
    let proxy = Proxy::start(system.address().to_string(), Script { at, fault }).await;
    let lease = lease(&system.source, &WANTED);
    let mut destination = destination();
    let error = pull(&system.ways, &proxy.address, lease, &mut destination).await.unwrap_err();
    assert!(expected(&error), "a fault at {at}: {error:?}");
    pull(&system.ways, system.address(), lease, &mut destination).await.unwrap();
    destination.assert_holds(&copies(&WANTED));
    assert_eq!(system.source.leases.finish(now(), lease), Ok(()), "no pin is left");
    assert_eq!(system.ways.tcp.pulls(), 0);
}

#[tokio::test]
async fn answers_that_are_cut_off_are_errors() {
    for at in [0, 1, HELLO - 1] {
        check(at, Fault::Close, |error| matches!(error, TransferError::Connect(..))).await;
    }
    let done = HELLO + WANTED.len() * FRAME;
    for at in [HELLO, HELLO + 1, HELLO + HEADER_BYTES, HELLO + FRAME - 1, HELLO + FRAME, done] {
        check(at, Fault::Close, |error| matches!(error, TransferError::Broken(..))).await;
    }
}

#[tokio::test]
async fn flipped_bits_are_noticed_wherever_they_are() {
    let checksum = |error: &TransferError| matches!(error, TransferError::Checksum(_));
    let protocol = |error: &TransferError| matches!(error, TransferError::Protocol { .. });
    // Magic and version are looked at first.
    for (at, expected) in [(0, protocol as fn(&_) -> _), (4, protocol), (5, checksum)] {
        for frame in [0, HELLO, HELLO + FRAME, HELLO + WANTED.len() * FRAME] {
            check(frame + at, Fault::Flip, expected).await;
        }
    }
    for at in [HEADER_BYTES, HELLO + HEADER_BYTES, HELLO + FRAME - 1, HELLO + FRAME + 40] {
        check(at, Fault::Flip, checksum).await;
    }
}

#[tokio::test]
async fn bytes_that_come_twice_are_noticed() {
    for (at, bytes) in [(0, HELLO), (HELLO, FRAME), (HELLO + FRAME, FRAME)] {
        let expected = |error: &TransferError| matches!(error, TransferError::Protocol { .. });
        check(at, Fault::Repeat(bytes), expected).await;
    }
    for (at, bytes) in [(HELLO, HEADER_BYTES), (HELLO + HEADER_BYTES, 7)] {
        let expected = |error: &TransferError| matches!(error, TransferError::Checksum(_));
        check(at, Fault::Repeat(bytes), expected).await;
    }
}

/// Pulls over a path that is slow from the first block on.
async fn dripping(bytes: usize, interval: Duration) -> (Result<(), TransferError>, Duration) {
    let system = tcp_system(5, BLOCK_BYTES).await;
    let script = Script { at: HELLO, fault: Fault::Drip(bytes, interval) };
    let proxy = Proxy::start(system.address().to_string(), script).await;
    let lease = lease(&system.source, &WANTED);
    let mut destination = destination();
    let began = Instant::now();
    let pulled = pull(&system.ways, &proxy.address, lease, &mut destination).await;
    if pulled.is_ok() {
        destination.assert_holds(&copies(&WANTED));
    }
    (pulled, began.elapsed())
}

#[tokio::test]
async fn a_slow_path_is_waited_for_while_it_moves() {
    let (slow, stopped) = tokio::join!(
        dripping(100, tcp::PROGRESS_MAX / 5),
        dripping(100, tcp::PROGRESS_MAX * 3 / 2),
    );
    let (pulled, took) = slow;
    pulled.unwrap();
    assert!(took > tcp::PROGRESS_MAX, "longer than any silence allowed: {took:?}");
    let (pulled, took) = stopped;
    assert!(matches!(pulled, Err(TransferError::Silent(_))), "{pulled:?}");
    assert!(took >= tcp::PROGRESS_MAX, "{took:?}");
}

#[tokio::test]
async fn who_does_not_speak_the_protocol_is_named() {
    for (said, expected) in [
        (&b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..], "does not speak"),
        (b"SKVT\x02aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "another version"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(said).await.unwrap();
            let _ended = stream.read(&mut [0]).await;
        });
        let lease = tcp_system(5, BLOCK_BYTES).await.source.leases.grant(now(), Arc::new(()));
        let pulled = pull(&Ways::default(), &address, lease.unwrap(), &mut destination()).await;
        let error = pulled.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains(&address), "{error}");
        assert_eq!(error.advice(), Advice::Fatal);
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn who_cannot_be_reached_is_named_in_time() {
    let full = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    // A closed port, a name that is none, and somebody who accepts and says nothing.
    let silent = full.local_addr().unwrap().to_string();
    for address in [closed, "no address".to_string(), silent] {
        let lease = tcp_system(5, BLOCK_BYTES).await.source.leases.grant(now(), Arc::new(()));
        let began = Instant::now();
        let pulled = pull(&Ways::default(), &address, lease.unwrap(), &mut destination()).await;
        let error = pulled.unwrap_err();
        assert!(matches!(error, TransferError::Connect(..)), "{error:?}");
        assert!(error.to_string().contains(&address), "{error}");
        assert_eq!(error.advice(), Advice::RetryOther);
        assert!(began.elapsed() < tcp::CONNECT_MAX * 3, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn connections_are_used_again_and_replaced_when_their_source_has_gone() {
    let mut system = tcp_system(5, BLOCK_BYTES).await;
    let lease = lease(&system.source, &WANTED);
    let connections = |sender: &tcp::Sender| sender.status().connections.load(Ordering::Relaxed);
    let sender = system.sender.clone().unwrap();
    for _ in 0..5 {
        pull(&system.ways, system.address(), lease, &mut destination()).await.unwrap();
        assert_eq!(connections(&sender), 1);
    }
    // Another server takes over the address.
    let address = system.address().to_string();
    system.stop().await;
    eventually("the connection is closed", || connections(&sender) == 0).await;
    let pools = Arc::new(LocalPools::default());
    pools.add(life(1), &system.source);
    let server = tcp::Server::bind(&address, pools, tcp::ServerLimits::default()).await.unwrap();
    let sender = server.sender();
    let serving = tokio::spawn(server.run());
    let mut destination = destination();
    pull(&system.ways, &address, lease, &mut destination).await.unwrap();
    destination.assert_holds(&copies(&WANTED));
    assert_eq!(connections(&sender), 1);
    serving.abort();
}

#[tokio::test]
async fn more_readers_than_allowed_are_told_so() {
    let limits = tcp::ServerLimits { connections_max: 1, ..tcp::ServerLimits::default() };
    let source = source(5, layout(BLOCK_BYTES), LeaseLimits::default());
    let system = System::with(Over::Tcp, source, LocalPools::default(), limits).await;
    let lease = lease(&system.source, &WANTED);
    pull(&system.ways, system.address(), lease, &mut destination()).await.unwrap();
    let others = Ways::default();
    let error = pull(&others, system.address(), lease, &mut destination()).await.unwrap_err();
    assert!(matches!(error, TransferError::Busy(_)), "{error:?}");
    assert_eq!(error.advice(), Advice::RetrySame);
    pull(&system.ways, system.address(), lease, &mut destination()).await.unwrap();
}

#[tokio::test]
async fn pulls_beyond_a_reader_s_own_limit_wait_and_end_by_their_deadline() {
    let system = tcp_system(5, BLOCK_BYTES).await;
    let gate = Arc::new(Gate::default());
    let script = Script { at: HELLO, fault: Fault::Hold(gate.clone()) };
    let proxy = Proxy::start(system.address().to_string(), script).await;
    let lease = lease(&system.source, &WANTED);
    let limits = tcp::ReaderLimits { connections_max: 1, ..tcp::ReaderLimits::default() };
    let ways = Ways { tcp: tcp::Connections::new(limits), ..Ways::default() };

    let (held, address) = (ways.clone(), proxy.address.clone());
    let first = tokio::spawn(async move {
        let mut destination = destination();
        pull(&held, &address, lease, &mut destination).await.map(|()| destination)
    });
    gate.reached().await;
    assert_eq!(ways.tcp.pulls(), 1);
    let (mut waiting, copies) = (destination(), copies(&WANTED));
    let (soon, writer) = (Instant::now() + Duration::from_millis(50), &mut waiting.writer);
    let second = ways.tcp.pull(system.address(), &life(1), lease, &copies, writer, soon).await;
    assert!(matches!(second, Err(TransferError::Deadline(_))), "{second:?}");
    gate.open();
    first.await.unwrap().unwrap().assert_holds(&copies);
    pull(&ways, system.address(), lease, &mut waiting).await.unwrap();
    waiting.assert_holds(&copies);
}

#[tokio::test]
async fn a_pull_that_is_dropped_lets_go_of_its_pin() {
    // More than sockets and proxy hold, so that the source is still sending.
    let system = tcp_system(16, 1 << 20).await;
    let gate = Arc::new(Gate::default());
    let script = Script { at: HELLO + 10_000, fault: Fault::Hold(gate.clone()) };
    let proxy = Proxy::start(system.address().to_string(), script).await;
    let sources = Vec::from_iter(0..16);
    let lease = lease(&system.source, &sources);
    let mut destination = Destination::new(sources.clone(), layout(1 << 20));
    let (copies, way) = (copies(&sources), Way::Tcp(proxy.address.clone()));
    let deadline = Instant::now() + PULL_MAX;
    let (worker, writer) = (life(1), &mut destination.writer);
    tokio::select! {
        pulled = system.ways.pull(&way, &worker, lease, &copies, writer, deadline) => {
            panic!("{pulled:?}")
        }
        () = gate.reached() => {}
    }
    let status = system.sender.as_ref().unwrap();
    eventually("no read", || status.status().reads.load(Ordering::Relaxed) == 0).await;
    assert_eq!(system.ways.tcp.pulls(), 0);
    assert_eq!(system.source.leases.finish(now(), lease), Ok(()));
}

/// Changes a byte of each block before it is checksummed, and refuses some reads.
struct Corruption(Arc<AtomicU64>);

impl TransferFaults for Corruption {
    fn before_read(&self, _worker: &WorkerLife) -> Result<(), TransferError> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Err(kv_transfer::LeaseError::Expired.into()),
            _ => Ok(()),
        }
    }

    fn in_transit(&self, block: &mut [u8]) {
        block[7] ^= 0x80;
    }
}

#[tokio::test]
async fn faults_of_a_test_come_through() {
    let source = source(5, layout(BLOCK_BYTES), LeaseLimits::default());
    let reads = Arc::default();
    let faults = Box::new(Corruption(Arc::clone(&reads)));
    let system = System::with_faults(Over::Tcp, source, faults).await;
    let lease = lease(&system.source, &WANTED);
    let mut destination = destination();
    let error = pull(&system.ways, system.address(), lease, &mut destination).await.unwrap_err();
    assert!(matches!(error, TransferError::Lease(kv_transfer::LeaseError::Expired)), "{error:?}");
    pull(&system.ways, system.address(), lease, &mut destination).await.unwrap();
    for (index, block) in WANTED.into_iter().enumerate() {
        let mut expected = content(block, BLOCK_BYTES);
        expected[7] ^= 0x80;
        assert_eq!(destination.block(index), expected);
    }
    assert_eq!(reads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn with_tls_a_reader_without_or_with_another_authority_is_refused() {
    let source = source(5, layout(BLOCK_BYTES), LeaseLimits::default());
    let system = System::new(Over::Tls, source).await;
    let lease = lease(&system.source, &WANTED);
    let (_, other) = tls::both_ends();
    let others = tcp::Connections::with_tls(tcp::ReaderLimits::default(), other);
    for tcp in [tcp::Connections::default(), others] {
        let ways = Ways { tcp, ..Ways::default() };
        let error = pull(&ways, system.address(), lease, &mut destination()).await.unwrap_err();
        assert!(matches!(error, TransferError::Connect(..)), "{error:?}");
    }
    pull(&system.ways, system.address(), lease, &mut destination()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed() {
    let system = tcp_system(5, BLOCK_BYTES).await;
    let lease = lease(&system.source, &WANTED);
    // The clock goes on only where a test waits: bytes come in no time.
    tokio::time::resume();
    pull(&system.ways, system.address(), lease, &mut destination()).await.unwrap();
    let sender = system.sender.as_ref().unwrap();
    assert_eq!(sender.status().connections.load(Ordering::Relaxed), 1);
    tokio::time::pause();
    tokio::time::sleep(tcp::IDLE_MAX * 9 / 10).await;
    tokio::time::resume();
    let connections = || sender.status().connections.load(Ordering::Relaxed);
    eventually("the reader has closed it", || connections() == 0).await;
}
