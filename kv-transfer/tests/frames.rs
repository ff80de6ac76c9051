//! Both sides of a connection are given frames that were changed on their way, or made up.

#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::{Destination, copies, layout, lease, life, source};
use kv_transfer::tcp::wire::{HEADER_BYTES, Header, Kind, READ_BYTES_MAX};
use kv_transfer::tcp::{Connection, Right, Sender, ServerLimits};
use kv_transfer::{Lease, LeaseLimits, LocalPools, LocalSource};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

const SEEDS: u64 = 10_000;
const BLOCKS: u32 = 12;
const BLOCK_BYTES: usize = 256;

/// No allocation that a peer can cause is larger than its largest frame; a test's own are smaller.
const ALLOCATION_MAX: usize = 2 * READ_BYTES_MAX;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// Remembers the largest allocation of each thread.
struct Measured;

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Measured {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _thread_ends =
            LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Measured = Measured;

/// A source and what a reader asks of it.
struct Talk {
    sender: Sender,
    source: Arc<LocalSource>,
    lease: Lease,
    wanted: Vec<u32>,
}

impl Talk {
    fn new() -> Self {
        let source = source(BLOCKS, layout(BLOCK_BYTES), LeaseLimits::default());
        let pools = Arc::new(LocalPools::default());
        pools.add(life(1), &source);
        // Small, so that the pull takes several reads.
        let limits = ServerLimits { credit_bytes: 6 * 256, ..ServerLimits::default() };
        let wanted = vec![3, 4, 5, 6, 0, 9, 8, 7];
        let lease = lease(&source, &wanted);
        Self { sender: Sender::new(pools, limits), source, lease, wanted }
    }

    /// What the reader says when it hears `said`, and whether it has all blocks then.
    async fn read(&self, said: &[u8], destination: &mut Destination) -> (Vec<u8>, bool) {
        let mut asked = Vec::new();
        let stream = tokio::io::join(said, &mut asked);
        let right = Right { worker: &life(1), lease: self.lease };
        let pulled = match Connection::greet(stream).await {
            Ok(mut connection) => {
                let (copies, writer) = (copies(&self.wanted), &mut destination.writer);
                connection.pull(right, &copies, writer, 1 << 20).await.is_ok()
            }
            Err(_) => false,
        };
        (asked, pulled)
    }

    /// What the source says when it hears `asked`.
    async fn answer(&self, asked: &[u8]) -> Vec<u8> {
        let mut said = Vec::new();
        let _broken = self.sender.serve(tokio::io::join(asked, &mut said)).await;
        said
    }

    /// Both sides of a pull that succeeds.
    async fn recorded(&self) -> (Vec<u8>, Vec<u8>) {
        let mut said = self.answer(&[]).await;
        loop {
            let mut destination = self.destination();
            let (asked, is_complete) = self.read(&said, &mut destination).await;
            if is_complete {
                destination.assert_holds(&copies(&self.wanted));
                return (asked, said);
            }
            said = self.answer(&asked).await;
        }
    }

    fn destination(&self) -> Destination {
        Destination::new(vec![1, 2, 3, 7, 5, 10, 9, 0], layout(BLOCK_BYTES))
    }
}

/// Where frames begin and end.
fn frames(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut frames, mut start) = (Vec::new(), 0);
    while let Some(header) = bytes[start..].first_chunk() {
        let end = start + HEADER_BYTES + Header::decode(header).unwrap().length as usize;
        frames.push(start..end);
        start = end;
    }
    frames
}

/// What happens to bytes on a bad path.
fn damaged(bytes: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let (at, length) = (rng.random_range(0..bytes.len()), rng.random_range(1..300));
    let range = at..(at + length).min(bytes.len());
    match rng.random_range(0..6) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => rng.fill_bytes(&mut bytes[range]),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(range)),
        4 => {
            let copied = bytes[range].to_vec();
            bytes.splice(at..at, copied);
        }
        _ => {
            let frames = frames(&bytes);
            let (from, to) = (rng.random_range(0..frames.len()), rng.random_range(0..frames.len()));
            let frame = bytes[frames[from].clone()].to_vec();
            let replaced = if rng.random() { frames[to].clone() } else { at_start(&frames[to]) };
            bytes.splice(replaced, frame);
        }
    }
    bytes
}

fn at_start(range: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    range.start..range.start
}

/// What somebody sends who knows the protocol: numbers of a header, or of a payload, are others,
/// and the checksums fit.
fn forged(bytes: &[u8], rng: &mut SmallRng, payload_too: bool) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let frames = frames(&bytes);
    let frame = frames[rng.random_range(0..frames.len())].clone();
    let (header, payload) = bytes[frame].split_at_mut(HEADER_BYTES);
    let odd = [0, 1, 2, 255, 1 << 16, u32::MAX, u32::MAX / 2, rng.random()];
    let odd = odd[rng.random_range(0..odd.len())].to_le_bytes();
    if payload_too && payload.len() >= 4 && rng.random_bool(0.8) {
        let at = rng.random_range(0..=payload.len() - 4);
        payload[at..at + 4].copy_from_slice(&odd);
        header[28..32].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    } else if rng.random_bool(0.1) {
        header[5] = rng.random_range(0..10);
    } else {
        let field = 8 + 4 * rng.random_range(0..5);
        header[field..field + 4].copy_from_slice(&odd);
    }
    let crc = crc32fast::hash(&header[..32]).to_le_bytes();
    header[32..].copy_from_slice(&crc);
    bytes
}

fn assert_small_allocations(seed: u64) {
    let largest = LARGEST.with(|largest| largest.replace(0));
    assert!(largest <= ALLOCATION_MAX, "seed {seed}: {largest} bytes were allocated at once");
}

#[tokio::test(start_paused = true)]
async fn a_reader_never_takes_what_was_not_sent() {
    let talk = Talk::new();
    let (_, said) = talk.recorded().await;
    let mut accepted = 0;
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let forges = rng.random_bool(0.4);
        let bytes = if forges { forged(&said, &mut rng, false) } else { damaged(&said, &mut rng) };
        let mut destination = talk.destination();
        LARGEST.with(|largest| largest.set(0));
        let (_, is_complete) = talk.read(&bytes, &mut destination).await;
        assert_small_allocations(seed);
        if is_complete {
            // Not changed after all, or behind the last byte that was due.
            let unchanged = bytes.starts_with(&said) || credit_alone_differs(&bytes, &said);
            assert!(unchanged, "seed {seed}: accepted changed bytes");
            destination.assert_holds(&copies(&talk.wanted));
            accepted += 1;
        }
    }
    assert!(accepted < SEEDS / 10, "{accepted} of {SEEDS} changed nothing: the test is too mild");
}

/// A credit is the source's to choose, and no block.
fn credit_alone_differs(bytes: &[u8], said: &[u8]) -> bool {
    let hello = HEADER_BYTES + 8;
    bytes.len() >= said.len() && bytes[hello..].starts_with(&said[hello..])
}

#[tokio::test(start_paused = true)]
async fn a_source_sends_nothing_that_was_not_asked_for_by_right() {
    let talk = Talk::new();
    let (asked, said) = talk.recorded().await;
    let announced: Vec<Vec<u8>> =
        talk.wanted.iter().map(|block| common::content(*block, BLOCK_BYTES)).collect();
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let forges = rng.random_bool(0.5);
        let bytes = if forges { forged(&asked, &mut rng, true) } else { damaged(&asked, &mut rng) };
        LARGEST.with(|largest| largest.set(0));
        let answered = talk.answer(&bytes).await;
        assert_small_allocations(seed);
        let is_prefix = said.starts_with(&answered) || answered.starts_with(&said);
        assert!(forges || is_prefix, "seed {seed}: answered something else");
        for frame in frames(&answered) {
            let frame = &answered[frame];
            let header = Header::decode(frame.first_chunk().unwrap()).unwrap();
            if header.kind == Kind::Blocks {
                let mut blocks = frame[HEADER_BYTES..].chunks(BLOCK_BYTES);
                let known = |block: &[u8]| announced.iter().any(|announced| announced == block);
                assert!(blocks.all(known), "seed {seed}: sent a block that was not announced");
            }
        }
        assert_eq!(talk.sender.status().reads.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
    assert_eq!(talk.source.leases.finish(common::now(), talk.lease), Ok(()), "no pin is left");
}

#[tokio::test(start_paused = true)]
async fn noise_is_refused_by_both() {
    let talk = Talk::new();
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut noise = vec![0; rng.random_range(0..400)];
        rng.fill_bytes(&mut noise);
        if rng.random() && noise.len() >= 5 {
            noise[..5].copy_from_slice(b"SKVT\x01");
        }
        LARGEST.with(|largest| largest.set(0));
        let (_, is_complete) = talk.read(&noise, &mut talk.destination()).await;
        assert!(!is_complete, "seed {seed}");
        let answered = talk.answer(&noise).await;
        assert_eq!(frames(&answered).len(), 1, "seed {seed}: more than a hello");
        assert_small_allocations(seed);
    }
}
