//! Plans of copies, against the plainest copy there is.

#![allow(clippy::unwrap_used)]

mod common;

use common::layout;
use kv_transfer::{BlockCopy, CopyOp, Extent, KvLayout, PlanError, plan};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

const BLOCK_BYTES: usize = 16;
const SEEDS: u64 = 5_000;

/// Two pools and copies between them, as a seed has it.
struct Drawn {
    rng: SmallRng,
    source: usize,
    destination: usize,
    copies: Vec<BlockCopy>,
    layout: KvLayout,
}

impl Drawn {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (source, destination) = (rng.random_range(1..40), rng.random_range(1..40));
        let copies = random_copies(&mut rng, source, destination);
        Self { rng, source, destination, copies, layout: layout(BLOCK_BYTES) }
    }
}

/// Copies into distinct blocks, with and without runs of neighbours.
fn random_copies(rng: &mut SmallRng, source: usize, destination: usize) -> Vec<BlockCopy> {
    let mut places: Vec<usize> = (0..destination).collect();
    let disorder = rng.random_range(0..=destination);
    places.partial_shuffle(rng, disorder);
    places.truncate(rng.random_range(0..=destination));
    let jump = rng.random_range(0.0..1.0);
    let mut from = 0;
    let mut copy = |destination| {
        from =
            if rng.random_bool(jump) { rng.random_range(0..source) } else { (from + 1) % source };
        BlockCopy { source: from as u32, destination }
    };
    places.into_iter().map(&mut copy).collect()
}

/// Each block on its own, and how often each is written.
fn naive(copies: &[BlockCopy], destination: usize) -> Vec<Option<u32>> {
    let mut blocks = vec![None; destination];
    for copy in copies {
        assert_eq!(
            blocks[copy.destination].replace(copy.source),
            None,
            "a test of distinct copies"
        );
    }
    blocks
}

fn carried_out(ops: &[CopyOp], destination: usize) -> Vec<Option<u32>> {
    let mut blocks = vec![None; destination];
    for op in ops {
        for index in 0..op.blocks {
            let block = &mut blocks[(op.destination + index) as usize];
            assert_eq!(block.replace(op.source + index), None, "written twice");
        }
    }
    blocks
}

#[test]
fn a_plan_does_what_single_copies_do_in_as_few_operations_as_there_are_runs() {
    for seed in 0..SEEDS {
        let Drawn { mut rng, source, destination, mut copies, layout } = Drawn::new(seed);
        let extent = |blocks| Extent { layout: &layout, blocks };
        let ops = plan(extent(source), extent(destination), &copies).unwrap();
        let in_bounds = |op: &CopyOp| {
            op.blocks > 0
                && (op.source + op.blocks) as usize <= source
                && (op.destination + op.blocks) as usize <= destination
        };
        assert!(ops.iter().all(in_bounds), "seed {seed}: {ops:?}");
        let (planned, expected) = (carried_out(&ops, destination), naive(&copies, destination));
        assert_eq!(planned, expected, "seed {seed}");
        let goes_on = |pair: &[CopyOp]| {
            let ends = |op: CopyOp| (op.source + op.blocks, op.destination + op.blocks);
            ends(pair[0]) == (pair[1].source, pair[1].destination)
        };
        assert!(!ops.windows(2).any(goes_on), "seed {seed}: neighbours in {ops:?}");
        copies.shuffle(&mut rng);
        let reordered = plan(extent(source), extent(destination), &copies).unwrap();
        assert_eq!(reordered, ops, "seed {seed}: the order of copies is of no account");
    }
}

#[test]
fn one_wrong_copy_among_many_is_refused() {
    for seed in 0..SEEDS {
        let Drawn { mut rng, source, destination, mut copies, layout } = Drawn::new(seed);
        let extent = |blocks| Extent { layout: &layout, blocks };
        let place = rng.random_range(0..destination);
        let (wrong, error) = match rng.random_range(0..3) {
            0 if !copies.is_empty() => {
                let twice = *copies.choose(&mut rng).unwrap();
                (twice, PlanError::Duplicate { block: twice.destination })
            }
            1 => {
                let block = source + rng.random_range(0..3);
                let wrong = BlockCopy { source: block as u32, destination: place };
                (wrong, PlanError::Source { block, blocks: source })
            }
            _ => {
                let block = destination.saturating_add(rng.random_range(0..=usize::MAX));
                let wrong = BlockCopy { source: 0, destination: block };
                (wrong, PlanError::Destination { block, blocks: destination })
            }
        };
        copies.insert(rng.random_range(0..=copies.len()), wrong);
        let planned = plan(extent(source), extent(destination), &copies);
        assert_eq!(planned, Err(error), "seed {seed}");
    }
}

#[test]
fn layouts_must_be_equal_in_everything_and_addressable() {
    let ours = layout(BLOCK_BYTES);
    let check = |other: KvLayout, blocks: usize, expected: Result<Vec<CopyOp>, PlanError>| {
        let (source, destination) =
            (Extent { layout: &ours, blocks: 1 }, Extent { layout: &other, blocks });
        let copies = [BlockCopy { source: 0, destination: 0 }];
        assert_eq!(plan(source, destination, &copies), expected, "{other:?}");
    };
    check(ours.clone(), 1, Ok(vec![CopyOp { source: 0, destination: 0, blocks: 1 }]));
    let mismatch = Err(PlanError::LayoutMismatch);
    check(KvLayout { numerics_id: "m".into(), ..ours.clone() }, 1, mismatch.clone());
    check(KvLayout { block_size: 4, ..ours.clone() }, 1, mismatch.clone());
    check(KvLayout { layers: 2, ..ours.clone() }, 1, mismatch.clone());
    check(KvLayout { kv_heads: 2, ..ours.clone() }, 1, mismatch.clone());
    check(KvLayout { head_dim: 2, ..ours.clone() }, 1, mismatch.clone());
    check(KvLayout { element_bytes: 2, ..ours.clone() }, 1, mismatch);
    check(ours.clone(), usize::MAX / 2, Err(PlanError::Overflow));
}

#[test]
fn sizes_that_overflow_are_refused() {
    for layout in [
        KvLayout { layers: usize::MAX, ..layout(BLOCK_BYTES) },
        KvLayout { kv_heads: usize::MAX / 2, block_size: 3, ..layout(BLOCK_BYTES) },
        KvLayout { element_bytes: usize::MAX / 3, ..layout(BLOCK_BYTES) },
        KvLayout { head_dim: 0, ..layout(BLOCK_BYTES) },
    ] {
        let extent = Extent { layout: &layout, blocks: 1 };
        assert_eq!(plan(extent, extent, &[]), Err(PlanError::Overflow), "{layout:?}");
    }
}

#[test]
fn runs_may_end_at_the_last_number_there_is() {
    let layout = layout(BLOCK_BYTES);
    let extent = Extent { layout: &layout, blocks: 1 << 32 };
    let copy = |n: u32| BlockCopy { source: n, destination: n as usize };
    let ops = plan(extent, extent, &[copy(u32::MAX), copy(0), copy(u32::MAX - 1)]);
    let expected = [
        CopyOp { source: 0, destination: 0, blocks: 1 },
        CopyOp { source: u32::MAX - 1, destination: u32::MAX - 1, blocks: 2 },
    ];
    assert_eq!(ops.unwrap(), expected);
}
