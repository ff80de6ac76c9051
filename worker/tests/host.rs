//! The engine on its thread: news arrives, and what nobody wants any more is freed at once.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use engine::{Compute, CpuRunner, Engine, EngineConfig, KernelPath, Model, SequenceRequest};
use protocol::v1::{Sampling, Stopping};
use protocol::{Incarnation, WorkerLife};
use worker::{EngineHost, SequenceHandle, outputs};

fn host() -> EngineHost {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures/qwen3-tied");
    let path = KernelPath::detect();
    let model = Arc::new(Model::load(&fixture, path).unwrap());
    let config = EngineConfig {
        block_size: 16,
        kv_blocks: 64,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        waiting_sequences_max: 2,
        speculative_tokens: 0,
        step_target: None,
        shares_memory: false,
    };
    let compute = Arc::new(Compute::new(1, path).unwrap());
    let life = WorkerLife { id: "w".into(), incarnation: Incarnation(1) };
    let runner = Box::new(CpuRunner::new(model, compute));
    EngineHost::start(Engine::new(runner, config).unwrap(), &life).unwrap()
}

fn request(handle: &SequenceHandle, prompt_tokens: u32, max_tokens: u32) -> SequenceRequest {
    SequenceRequest {
        id: handle.id(),
        prompt: (1..=prompt_tokens).collect(),
        generated: Vec::new(),
        sampling: Sampling::default(),
        stopping: Stopping { max_tokens, ignore_eos: true, ..Default::default() },
        cache_salt: String::new(),
        grammar: None,
        prompt_logprobs: None,
        priority: 0,
    }
}

/// Waits until the engine has no used blocks.
async fn at_rest(host: &EngineHost) {
    while host.load().blocks.used > 0 {
        tokio::task::yield_now().await;
    }
    let blocks = host.load().blocks;
    assert_eq!(blocks.free + blocks.cached, 64, "free + cached = total");
}

#[tokio::test]
async fn a_dropped_handle_ends_its_sequence_within_one_step() {
    let host = host();
    let handle = host.new_sequence();
    let (sink, mut news) = outputs(1000);
    host.generate(request(&handle, 20, 900), sink).await.unwrap();
    for _ in 0..5 {
        news.next().await.unwrap();
    }
    drop(handle);
    // The release is seen between two steps: at most the step under way still reports. All its
    // news is there once the engine is at rest.
    let queued_before = news.waiting();
    at_rest(&host).await;
    assert!(news.waiting() <= queued_before + 1, "{} then {}", queued_before, news.waiting());
    assert!(news.waiting() < 800, "it did not run to its end");
}

#[tokio::test]
async fn a_full_recipient_loses_its_sequences() {
    let host = host();
    let handle = host.new_sequence();
    let (sink, mut news) = outputs(3);
    host.generate(request(&handle, 20, 900), sink).await.unwrap();
    loop {
        tokio::task::yield_now().await;
        let load = host.load();
        if load.running == 0 && load.blocks.cached > 0 {
            break;
        }
    }
    assert!(news.next().await.is_none(), "and is told");
    at_rest(&host).await;
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_nothing_behind() {
    let host = host();
    for _ in 0..50 {
        let handle = host.new_sequence();
        let (sink, _news) = outputs(1000);
        let submitted = host.generate(request(&handle, 20, 900), sink);
        let gone = tokio::select! {
            biased;
            () = tokio::task::yield_now() => true,
            _ = submitted => false,
        };
        drop((handle, gone));
    }
    at_rest(&host).await;
}

#[tokio::test]
async fn a_reservation_holds_its_blocks_until_it_is_dropped() {
    let host = host();
    let handle = host.new_sequence();
    let (sink, _news) = outputs(10);
    let reservation = host.reserve(request(&handle, 40, 10), sink, handle.clone()).await.unwrap();
    drop(handle);
    assert_eq!((reservation.cached_blocks, reservation.writer.len()), (0, 3));
    // A second command is answered after the first one's effects are visible.
    let other = host.new_sequence();
    let (sink, mut news) = outputs(10);
    host.generate(request(&other, 1, 1), sink).await.unwrap();
    news.next().await.unwrap();
    assert_eq!(host.load().blocks.used, 3);
    drop(reservation);
    at_rest(&host).await;
}

#[tokio::test]
async fn what_cannot_be_computed_is_refused() {
    let host = host();
    let (sink, _news) = outputs(10);
    for (prompt_tokens, max_tokens) in [(0, 1), (5000, 1), (400, 1), (5, 0)] {
        let handle = host.new_sequence();
        let refused = host.generate(request(&handle, prompt_tokens, max_tokens), sink.clone());
        assert!(refused.await.is_err(), "{prompt_tokens} and {max_tokens}");
    }
    at_rest(&host).await;
}

#[tokio::test]
async fn a_recipient_that_is_lost_does_not_free_blocks_that_are_being_filled() {
    let host = host();
    let (sink, mut news) = outputs(1000);
    let reserved = host.new_sequence();
    let reservation =
        host.reserve(request(&reserved, 40, 10), sink.clone(), reserved.clone()).await.unwrap();
    let running = host.new_sequence();
    host.generate(request(&running, 20, 900), sink).await.unwrap();
    // Once there is news, the load that was reported before it counts both sequences.
    news.next().await.unwrap();
    drop(news);
    while host.load().running > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(host.load().blocks.used, 3, "the reservation's");
    drop((reservation, reserved, running));
    at_rest(&host).await;
}

#[tokio::test]
async fn releases_are_never_slept_over() {
    let host = host();
    for _ in 0..2_000 {
        let handle = host.new_sequence();
        let (sink, _news) = outputs(10);
        let reservation = host.reserve(request(&handle, 40, 10), sink, handle.clone());
        drop(reservation.await.unwrap());
        drop(handle);
        at_rest(&host).await;
    }
}
