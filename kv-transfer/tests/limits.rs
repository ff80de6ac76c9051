//! What a source allows a reader, and for how long. Over a pipe and a paused clock, so that every
//! limit is exact.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Gpus, Over, layout, lease, life, now, source};
use kv_transfer::tcp::wire::{Header, Kind, ReadRequest, Refusal, Run, encode_frame};
use kv_transfer::tcp::{
    ASK_MAX, Broken, CREDIT_WAIT_MAX, IDLE_MAX, PROGRESS_MAX, READ_MAX, Sender, ServerLimits,
};
use kv_transfer::{Lease, LeaseError, LeaseLimits, LocalPools, LocalSource};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u32 = 8;

/// Longer than anything here takes, so that leases end only where a test wants it.
const LEASE: LeaseLimits = LeaseLimits {
    duration: Duration::from_secs(100),
    cap: Duration::from_secs(1_000),
    grace: Duration::from_secs(1),
    leases_max: 1,
};

struct Source {
    sender: Arc<Sender>,
    blocks: Arc<LocalSource>,
    lease: Lease,
}

/// How serving ended, and after how long.
type Served = JoinHandle<(Result<(), Broken>, Duration)>;

impl Source {
    fn new(limits: ServerLimits) -> Self {
        Self::of(limits, source(BLOCKS, layout(BLOCK_BYTES), LEASE))
    }

    fn of(limits: ServerLimits, blocks: Arc<LocalSource>) -> Self {
        let pools = Arc::new(LocalPools::default());
        pools.add(life(1), &blocks);
        let lease = lease(&blocks, &Vec::from_iter(0..BLOCKS));
        Self { sender: Arc::new(Sender::new(pools, limits)), blocks, lease }
    }

    /// A pipe that holds less than one block, with the hello read from it.
    async fn connect(&self) -> (DuplexStream, Served) {
        let (mut reader, stream) = tokio::io::duplex(1024);
        let sender = self.sender.clone();
        let served = tokio::spawn(async move {
            let began = Instant::now();
            (sender.serve(stream).await, began.elapsed())
        });
        assert_eq!(next(&mut reader).await.0.kind, Kind::Hello);
        (reader, served)
    }

    fn request(&self, read: u32, runs: &[Run]) -> Vec<u8> {
        self.asking(Kind::Read, read, runs)
    }

    fn asking(&self, kind: Kind, read: u32, runs: &[Run]) -> Vec<u8> {
        let (worker, layout) = (life(1), layout(BLOCK_BYTES));
        let request = ReadRequest { worker, lease: self.lease, layout, runs: runs.to_vec() };
        encode_frame(kind, read, &request.encode().unwrap())
    }

    fn reads(&self) -> u64 {
        self.sender.status().reads.load(Ordering::Relaxed)
    }

    /// Nothing is pinned any more, so that the lease ends as it should.
    fn assert_all_let_go(&self) {
        assert_eq!(self.reads(), 0);
        assert_eq!(self.blocks.leases.finish(now(), self.lease), Ok(()));
    }
}

fn run(first: u32, blocks: u32) -> Run {
    Run { first, blocks }
}

/// The next frame and its payload.
async fn next(reader: &mut DuplexStream) -> (Header, Vec<u8>) {
    let mut header = [0; 36];
    reader.read_exact(&mut header).await.unwrap();
    let header = Header::decode(&header).unwrap();
    let mut payload = vec![0; header.length as usize];
    reader.read_exact(&mut payload).await.unwrap();
    header.check(&payload).unwrap();
    (header, payload)
}

async fn refusal(reader: &mut DuplexStream) -> Refusal {
    let (header, payload) = next(reader).await;
    assert_eq!(header.kind, Kind::Refused);
    Refusal::decode(&payload).unwrap()
}

/// Waits for the end, which is to come silently and at this time.
async fn assert_silent_after(served: Served, expected: Duration) {
    let (served, took) = served.await.unwrap();
    assert!(matches!(served, Err(Broken::Silent)), "{served:?}");
    let late = took.saturating_sub(expected);
    assert!(took >= expected && late < Duration::from_millis(100), "after {took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_reader_is_let_go() {
    let source = Source::new(ServerLimits::default());
    let (mut reader, served) = source.connect().await;
    sleep(IDLE_MAX / 2).await;
    reader.write_all(&source.request(1, &[run(2, 1)])).await.unwrap();
    let (header, payload) = next(&mut reader).await;
    assert_eq!((header.kind, header.run), (Kind::Blocks, run(2, 1)));
    assert_eq!(payload, common::content(2, BLOCK_BYTES));
    assert_eq!(next(&mut reader).await.0.kind, Kind::Done);
    let (served, took) = served.await.unwrap();
    served.unwrap();
    assert!((IDLE_MAX..IDLE_MAX * 2).contains(&took), "after {took:?}");
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_asking_in_the_middle_is_let_go() {
    let source = Source::new(ServerLimits::default());
    for sent in [1, 20, 36, 50] {
        let (mut reader, served) = source.connect().await;
        reader.write_all(&source.request(1, &[run(0, 1)])[..sent]).await.unwrap();
        assert_silent_after(served, PROGRESS_MAX).await;
    }
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_asks_byte_by_byte_is_let_go() {
    let source = Source::new(ServerLimits::default());
    let (mut reader, served) = source.connect().await;
    for byte in source.request(1, &[run(0, 1)]) {
        if reader.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(PROGRESS_MAX / 5).await;
    }
    assert_silent_after(served, ASK_MAX).await;
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_loses_its_pin() {
    let source = Source::new(ServerLimits::default());
    let (mut reader, served) = source.connect().await;
    reader.write_all(&source.request(1, &[run(0, 8)])).await.unwrap();
    sleep(PROGRESS_MAX / 2).await;
    assert_eq!(source.reads(), 1);
    assert_silent_after(served, PROGRESS_MAX).await;
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_loses_its_pin_at_once() {
    let source = Source::new(ServerLimits::default());
    let (mut reader, served) = source.connect().await;
    reader.write_all(&source.request(1, &[run(0, 8)])).await.unwrap();
    reader.read_u8().await.unwrap();
    assert_eq!(source.reads(), 1);
    drop(reader);
    let (served, took) = served.await.unwrap();
    assert!(matches!(served, Err(Broken::Io(_))) && took.is_zero(), "{served:?} after {took:?}");
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_keeps_its_pin_for_a_while_only() {
    let source = Source::new(ServerLimits::default());
    let (mut reader, served) = source.connect().await;
    reader.write_all(&source.request(1, &[run(0, 8)])).await.unwrap();
    while !served.is_finished() {
        let mut some = [0; 1000];
        let _ended = reader.read(&mut some).await;
        sleep(PROGRESS_MAX * 9 / 10).await;
    }
    assert_silent_after(served, READ_MAX).await;
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn finishing_during_a_read_is_an_error_for_both_sides() {
    let source = Source::new(ServerLimits::default());
    let (mut reader, _served) = source.connect().await;
    reader.write_all(&source.request(1, &[run(0, 8)])).await.unwrap();
    reader.read_u8().await.unwrap();
    let leases = &source.blocks.leases;
    assert_eq!(leases.finish(now(), source.lease), Err(LeaseError::BeingRead));
    assert_eq!(leases.collect(now() + Duration::from_secs(9_000)), 0, "pinned");
    let mut rest = vec![0; 35 + 8 * BLOCK_BYTES];
    reader.read_exact(&mut rest).await.unwrap();
    assert_eq!(refusal(&mut reader).await, Refusal::LeaseUnknown);
    assert_eq!(leases.collect(now()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_expires_during_a_read_is_an_error() {
    let source = Source::new(ServerLimits::default());
    sleep(LEASE.duration - PROGRESS_MAX / 2).await;
    let (mut reader, _served) = source.connect().await;
    reader.write_all(&source.request(1, &[run(0, 8)])).await.unwrap();
    reader.read_u8().await.unwrap();
    sleep(PROGRESS_MAX * 3 / 4).await;
    let mut rest = vec![0; 35 + 8 * BLOCK_BYTES];
    reader.read_exact(&mut rest).await.unwrap();
    assert_eq!(refusal(&mut reader).await, Refusal::LeaseExpired);
}

#[tokio::test(start_paused = true)]
async fn more_than_the_credit_is_refused_and_so_is_what_the_pool_does_not_have() {
    let limits = ServerLimits { credit_bytes: 4 * BLOCK_BYTES as u32, ..ServerLimits::default() };
    let source = Source::new(limits);
    let (mut reader, _served) = source.connect().await;
    let refused: [&[Run]; 7] = [
        &[run(0, 5)],
        &[run(0, 2), run(3, 2), run(6, 1)],
        &[run(BLOCKS, 1)],
        &[run(BLOCKS - 1, 2)],
        &[run(u32::MAX, 1)],
        &[run(1, u32::MAX), run(1, u32::MAX)],
        &[run(0, 1), run(2, 0)],
    ];
    for (read, runs) in (1..).zip(refused) {
        reader.write_all(&source.request(read, runs)).await.unwrap();
        assert_eq!(refusal(&mut reader).await, Refusal::OverCredit, "{runs:?}");
    }
    reader.write_all(&source.request(8, &[run(0, 2), run(3, 2)])).await.unwrap();
    for expected in [Kind::Blocks, Kind::Blocks, Kind::Done] {
        assert_eq!(next(&mut reader).await.0.kind, expected);
    }
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_a_little_for_what_others_have_under_way() {
    let all = BLOCKS * BLOCK_BYTES as u32;
    let limits = ServerLimits { credit_bytes: all, bytes_max: all, ..ServerLimits::default() };
    let source = Source::new(limits);
    let ((mut first, _a), (mut second, _b)) = (source.connect().await, source.connect().await);
    let began = Instant::now();
    first.write_all(&source.request(1, &[run(0, 8)])).await.unwrap();
    first.read_u8().await.unwrap();
    second.write_all(&source.request(1, &[run(0, 1)])).await.unwrap();
    assert_eq!(refusal(&mut second).await, Refusal::Busy);
    assert_eq!(began.elapsed(), CREDIT_WAIT_MAX);

    second.write_all(&source.request(2, &[run(0, 1)])).await.unwrap();
    sleep(CREDIT_WAIT_MAX / 2).await;
    let mut rest = vec![0; 35 + 8 * BLOCK_BYTES];
    first.read_exact(&mut rest).await.unwrap();
    assert_eq!(next(&mut first).await.0.kind, Kind::Done);
    assert_eq!(next(&mut second).await.0.kind, Kind::Blocks, "its turn has come");
}

#[tokio::test(start_paused = true)]
async fn reads_are_numbered_one_after_the_other() {
    let source = Source::new(ServerLimits::default());
    for number in [0, 2, u32::MAX] {
        let (mut reader, served) = source.connect().await;
        let frame = encode_frame(Kind::Read, number, &source.request(1, &[run(0, 1)])[36..]);
        reader.write_all(&frame).await.unwrap();
        let (served, _) = served.await.unwrap();
        assert!(matches!(served, Err(Broken::Wire(_))), "{served:?}");
    }
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn what_was_borrowed_is_pinned_until_it_is_returned_or_time_is_up() {
    let gpus = Gpus::of(Over::Cuda);
    let blocks = gpus.source(BLOCKS, layout(BLOCK_BYTES), LEASE);
    let source = Source::of(ServerLimits::default(), blocks);
    let (mut reader, served) = source.connect().await;
    reader.write_all(&source.asking(Kind::BorrowByCuda, 1, &[run(0, 8)])).await.unwrap();
    assert_eq!(next(&mut reader).await.0.kind, Kind::Lent);
    sleep(READ_MAX / 2).await;
    assert_eq!(source.reads(), 1);
    reader.write_all(&encode_frame(Kind::Returned, 1, &[])).await.unwrap();
    assert_eq!(next(&mut reader).await.0.kind, Kind::Done);
    assert_eq!(source.reads(), 0);
    let borrowed_again = Instant::now();
    reader.write_all(&source.asking(Kind::BorrowByCuda, 2, &[run(0, 8)])).await.unwrap();
    assert_eq!(next(&mut reader).await.0.kind, Kind::Lent);
    let (served, _) = served.await.unwrap();
    assert!(matches!(served, Err(Broken::Silent)), "{served:?}");
    assert_eq!(borrowed_again.elapsed(), READ_MAX);
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn a_loan_ends_with_its_connection_and_with_whatever_is_said_but_that_it_is_returned() {
    let gpus = Gpus::of(Over::Cuda);
    let blocks = gpus.source(BLOCKS, layout(BLOCK_BYTES), LEASE);
    let source = Source::of(ServerLimits::default(), blocks);
    let said = [
        Vec::new(),
        source.request(2, &[run(0, 1)]),
        encode_frame(Kind::Returned, 2, &[]),
        encode_frame(Kind::Returned, 1, &[0]),
        vec![0; 36],
    ];
    for said in said {
        let (mut reader, served) = source.connect().await;
        reader.write_all(&source.asking(Kind::BorrowByCuda, 1, &[run(0, 8)])).await.unwrap();
        assert_eq!(next(&mut reader).await.0.kind, Kind::Lent);
        reader.write_all(&said).await.unwrap();
        drop(reader);
        let (served, took) = served.await.unwrap();
        assert!(served.is_err() && took.is_zero(), "{served:?} after {took:?}");
        assert_eq!(source.reads(), 0);
    }
    source.assert_all_let_go();
}

#[tokio::test(start_paused = true)]
async fn what_lies_on_the_host_or_outside_of_the_pool_is_not_lent() {
    let gpus = Gpus::of(Over::Cuda);
    let on_gpu = gpus.source(BLOCKS, layout(BLOCK_BYTES), LEASE);
    let cases = [
        (Source::new(ServerLimits::default()), run(0, 1), Refusal::NotLent),
        (Source::of(ServerLimits::default(), on_gpu), run(BLOCKS - 1, 2), Refusal::OverCredit),
    ];
    for (source, unwanted, refused) in cases {
        let (mut reader, _served) = source.connect().await;
        reader.write_all(&source.asking(Kind::BorrowByCuda, 1, &[unwanted])).await.unwrap();
        assert_eq!(refusal(&mut reader).await, refused);
        source.assert_all_let_go();
    }
}
