//! What holds for every way that blocks move.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use kv_transfer::{
    Advice, BlockCopy, Capability, KvLayout, Lease, LeaseError, LeaseLimits, PlanError, Pulled,
    TransferError, Way,
};
use protocol::v1;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Runs a test over each way.
async fn each_way(blocks: u32, block_bytes: usize, test: impl AsyncFn(&System, &Gpus)) {
    for over in Over::ALL {
        println!("over {over:?}");
        let gpus = Gpus::of(over);
        let source = gpus.source(blocks, layout(block_bytes), LeaseLimits::default());
        let system = System::new(over, source).await;
        test(&system, &gpus).await;
        assert!(system.source.leases.is_empty(), "{over:?}: a lease is left");
        drop(system);
        gpus.end().await;
    }
}

/// Runs a test of one pull of block 0, announced, into one block, and says what it must end with.
async fn refused(
    expected: fn(&TransferError) -> bool,
    advice: Advice,
    pull: impl AsyncFn(&System, &Gpus, Lease, &mut Destination) -> Result<Pulled, TransferError>,
) {
    each_way(4, 64, async |system, gpus| {
        let lease = lease(&system.source, &[0]);
        let mut destination = gpus.destination(vec![0], layout(64));
        let error = pull(system, gpus, lease, &mut destination).await.unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert_eq!(error.advice(), advice, "{error:?}");
        destination.assert_holds(&[]);
        system.source.leases.revoke(lease.id);
        system.source.leases.collect(now());
    })
    .await;
}

#[tokio::test]
async fn blocks_arrive_as_they_were() {
    // Blocks that are small, of a page, and larger than what one frame carries.
    for (block_bytes, blocks) in [(16, 300), (4096, 64), (3 << 20, 7)] {
        each_way(blocks, block_bytes, async |system, gpus| {
            for seed in 0..4 {
                let mut rng = SmallRng::seed_from_u64(seed);
                let mut sources: Vec<u32> = (0..blocks).collect();
                let mut places = sources.clone();
                if seed > 0 {
                    // From in order on both sides to scattered on both.
                    sources.partial_shuffle(&mut rng, blocks as usize * seed as usize / 3);
                    places.partial_shuffle(&mut rng, blocks as usize / 2);
                }
                sources.truncate(rng.random_range(1..=blocks as usize));
                places.truncate(sources.len());
                let (lease, copies) = (lease(&system.source, &sources), copies(&sources));
                let mut destination = gpus.destination(places, layout(block_bytes));
                let pulled = system.pull(&system.worker, lease, &copies, &mut destination).await;
                pulled.unwrap();
                destination.assert_holds(&copies);
                assert_eq!(system.source.leases.finish(now(), lease), Ok(()));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn one_block_may_be_wanted_in_several_places_and_nothing_at_all() {
    each_way(4, 64, async |system, gpus| {
        let (lease, copies) = (lease(&system.source, &[2, 3]), copies(&[2, 3, 2]));
        let mut destination = gpus.destination(vec![4, 0, 2], layout(64));
        system.pull(&system.worker, lease, &[], &mut destination).await.unwrap();
        system.pull(&system.worker, lease, &copies, &mut destination).await.unwrap();
        destination.assert_holds(&copies);
        assert_eq!(system.source.leases.finish(now(), lease), Ok(()));
    })
    .await;
}

#[tokio::test]
async fn a_block_that_was_not_announced_is_refused() {
    let expected =
        |error: &TransferError| matches!(error, TransferError::Lease(LeaseError::NotAnnounced));
    refused(expected, Advice::Fatal, async |system, _gpus, lease, destination| {
        system.pull(&system.worker, lease, &copies(&[1]), destination).await
    })
    .await;
}

#[tokio::test]
async fn another_capability_is_refused_like_an_unknown_lease() {
    let expected =
        |error: &TransferError| matches!(error, TransferError::Lease(LeaseError::Unknown));
    refused(expected, Advice::Recompute, async |system, _gpus, lease, destination| {
        let capability = Capability::from_bytes(&[7; 16]).unwrap();
        let forged = Lease { capability, ..lease };
        system.pull(&system.worker, forged, &copies(&[0]), destination).await
    })
    .await;
    refused(expected, Advice::Recompute, async |system, _gpus, lease, destination| {
        let finished = system.source.leases.finish(now(), lease);
        finished.unwrap();
        system.pull(&system.worker, lease, &copies(&[0]), destination).await
    })
    .await;
}

#[tokio::test]
async fn another_life_is_gone() {
    let expected = |error: &TransferError| matches!(error, TransferError::SourceGone(_));
    refused(expected, Advice::RetryOther, async |system, _gpus, lease, destination| {
        system.pull(&life(2), lease, &copies(&[0]), destination).await
    })
    .await;
}

#[tokio::test]
async fn another_layout_is_refused() {
    let expected = |error: &TransferError| matches!(error, TransferError::LayoutMismatch);
    let numerics_id = "other".to_string();
    let layouts = [KvLayout { numerics_id, ..layout(64) }, layout(128), layout(32)];
    refused(expected, Advice::Fatal, async |system, gpus, lease, destination| {
        for other in &layouts {
            let mut other = gpus.destination(vec![0], other.clone());
            let pulled = system.pull(&system.worker, lease, &copies(&[0]), &mut other).await;
            assert!(matches!(pulled, Err(TransferError::LayoutMismatch)), "{pulled:?}");
        }
        let swapped = KvLayout { layers: 2, kv_heads: 1, head_dim: 2, ..layout(64) };
        assert_eq!(swapped.block_bytes(), 64, "as many bytes with another meaning");
        *destination = gpus.destination(vec![0], swapped);
        system.pull(&system.worker, lease, &copies(&[0]), destination).await
    })
    .await;
}

#[tokio::test]
async fn copies_that_make_no_sense_are_refused() {
    let expected = |error: &TransferError| {
        matches!(
            error,
            TransferError::Plan(PlanError::Duplicate { .. } | PlanError::Destination { .. })
        )
    };
    for destinations in [[0, 0], [0, 1]] {
        refused(expected, Advice::Fatal, async |system, _gpus, lease, destination| {
            let copies = destinations.map(|destination| BlockCopy { source: 0, destination });
            system.pull(&system.worker, lease, &copies, destination).await
        })
        .await;
    }
    let outside = |error: &TransferError| {
        matches!(
            error,
            TransferError::Plan(PlanError::Source { .. }) | TransferError::Protocol { .. }
        )
    };
    for source in [4, u32::MAX - 1] {
        refused(outside, Advice::Fatal, async |system, _gpus, lease, destination| {
            system.pull(&system.worker, lease, &copies(&[source]), destination).await
        })
        .await;
    }
}

#[tokio::test]
async fn an_expired_lease_is_refused() {
    let expected =
        |error: &TransferError| matches!(error, TransferError::Lease(LeaseError::Expired));
    refused(expected, Advice::Recompute, async |system, _gpus, _lease, destination| {
        let leases = &system.source.leases;
        let granted = now().checked_sub(leases.limits().duration).unwrap();
        let expired = leases.grant(granted, Arc::new(())).unwrap();
        leases.announce(expired.id, &[0]);
        let pulled = system.pull(&system.worker, expired, &copies(&[0]), destination).await;
        leases.revoke(expired.id);
        pulled
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_at_once_each_have_their_blocks() {
    const READERS: u32 = 100;
    // Those by UCX share one agent: `tests/ucx.rs` has them.
    let is_here = |over: &Over| over.transports().is_none();
    for over in Over::ALL.into_iter().filter(is_here) {
        let gpus = Arc::new(Gpus::of(over));
        let source = gpus.source(256, layout(64 * 1024), LeaseLimits::default());
        let system = Arc::new(System::new(over, source).await);
        let reader = |reader: u32| {
            let (system, gpus) = (system.clone(), gpus.clone());
            tokio::spawn(async move {
                let sources: Vec<u32> = (0..20).map(|n| (reader * 7 + n * 3) % 256).collect();
                let lease = lease(&system.source, &sources);
                let mut destination = gpus.destination((0..20).collect(), layout(64 * 1024));
                let copies = copies(&sources);
                let pulled = system.pull(&system.worker, lease, &copies, &mut destination).await;
                pulled.unwrap();
                assert_eq!(system.source.leases.finish(now(), lease), Ok(()));
                (destination, copies)
            })
        };
        let readers: Vec<_> = (0..READERS).map(reader).collect();
        let mut pulled = Vec::new();
        for reader in readers {
            pulled.push(reader.await.unwrap());
        }
        // Afterwards, because comparing would keep the runtime from its sockets.
        for (destination, copies) in pulled {
            destination.assert_holds(&copies);
        }
        assert!(system.source.leases.is_empty());
        assert_eq!(system.ways.tcp.pulls(), 0);
        drop(system);
        Arc::into_inner(gpus).unwrap().end().await;
    }
}

#[tokio::test]
async fn the_way_is_local_if_it_can_be() {
    let source = source(1, layout(64), LeaseLimits::default());
    let local = System::new(Over::Local, source.clone()).await;
    assert_eq!(local.way(), Way::Local);
    let tcp = System::new(Over::Tcp, source).await;
    assert_eq!(tcp.way(), Way::Tcp(tcp.address().to_string()));
    let unknown = tcp.ways.choose(&tcp.endpoints[..1], &tcp.worker);
    assert!(matches!(unknown, Err(TransferError::SourceGone(_))));

    let gpus = Gpus::of(Over::Cuda);
    let source = gpus.source(1, layout(64), LeaseLimits::default());
    let cuda = System::new(Over::Cuda, source).await;
    assert_eq!(cuda.way(), Way::Cuda(cuda.address().to_string()));
    let elsewhere = cuda.endpoints.iter().cloned().map(|endpoint| v1::KvEndpoint {
        address: endpoint.address.replace(|c: char| c.is_ascii_hexdigit(), "0"),
        ..endpoint
    });
    let elsewhere = cuda.ways.choose(&Vec::from_iter(elsewhere), &cuda.worker).unwrap();
    assert!(matches!(elsewhere, Way::Tcp(_)), "a GPU of another host: {elsewhere:?}");
}
