//! The client goes, or the prefill worker dies, while blocks are being read on a thread.

use std::sync::mpsc;
use std::time::Duration;

use kv_transfer::{TransferError, TransferFaults};
use parking_lot::Mutex;
use protocol::WorkerLife;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cancelled::{CANCELLED, WAYS, Way};
use crate::client::Client;
use crate::proxy::{PROXY, Proxy, asked};
use crate::system::{NOTICED, Plan, System, alone, request};

/// Between two looks for leases that ended during a read.
const COLLECTED: Duration = Duration::from_millis(100);

/// Copies stop at their first block until the sender of `goes_on` is dropped.
struct StoppedCopies {
    began: CancellationToken,
    goes_on: Mutex<mpsc::Receiver<()>>,
}

impl TransferFaults for StoppedCopies {
    fn before_read(&self, _worker: &WorkerLife) -> Result<(), TransferError> {
        Ok(())
    }

    fn in_transit(&self, _block: &mut [u8]) {
        self.began.cancel();
        let _sender_is_gone = self.goes_on.lock().recv();
    }
}

/// In one chunk, or in two, of which the first alone is so large that it is not copied at once.
const LARGE_PROMPT_TOKENS: usize = 20_000;
const CHUNKS_TOKENS: [usize; 2] = [LARGE_PROMPT_TOKENS, 18_000];

/// The step that may be under way when the client goes.
const SECOND_CHUNK: Duration = Duration::from_millis(201);

/// A system whose first request's blocks are just being read, on a thread. Meanwhile the clock
/// stands still.
async fn during_a_copy(chunk_tokens: usize) -> (System, Client, mpsc::SyncSender<()>) {
    let (goes_on, receiver) = mpsc::sync_channel(0);
    let began = CancellationToken::new();
    let copies = StoppedCopies { began: began.clone(), goes_on: Mutex::new(receiver) };
    let mut plan = Plan { transfers: Some(Box::new(copies)), ..Plan::default() };
    plan.prefill.max_num_batched_tokens = chunk_tokens;
    let (system, client) = asked(plan, &Proxy::default(), request(LARGE_PROMPT_TOKENS)).await;
    began.cancelled().await;
    (system, client, goes_on)
}

/// As far as they get without time.
async fn let_others_run() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

async fn check_copy(way: Way, chunk_tokens: usize) {
    println!("{way:?} in a chunk of {chunk_tokens}");
    let (system, client, goes_on) = during_a_copy(chunk_tokens).await;
    let deadline = Instant::now() + COLLECTED + SECOND_CHUNK + CANCELLED;
    let _client = way.go(&system, client).await;
    let_others_run().await;
    assert!(system.decode.blocks_used() > 0, "blocks that are being written");
    assert!(system.prefill.blocks_used() > 0, "blocks that are being read");
    assert_eq!(system.leases(), 1);
    drop(goes_on);
    system.check_rest(deadline).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_goes_during_a_copy() {
    for way in WAYS {
        for chunk_tokens in CHUNKS_TOKENS {
            check_copy(way, chunk_tokens).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_worker_dies_during_a_copy() {
    let (expected, took) = alone(&request(LARGE_PROMPT_TOKENS)).await;
    for chunk_tokens in CHUNKS_TOKENS {
        let (system, mut client, goes_on) = during_a_copy(chunk_tokens).await;
        let deadline = Instant::now() + took + NOTICED;
        system.kill(&system.prefill);
        system.cut(PROXY);
        let_others_run().await;
        assert!(system.prefill.blocks_used() > 0, "blocks that are being read");
        drop(goes_on);
        assert_eq!(client.ended(1).await, expected);
        system.check_rest(deadline).await;
        assert_eq!(client.silent(1).await, expected);
    }
}
