//! Blocks come from where pairs say to where they say, and nothing else changes.

use cuda_kernels::{CopyBlocks, Module};

use crate::emulator::{SHAPE, Work, run_everywhere};

#[track_caller]
fn check(block_bytes: usize, pairs: &[[u32; 2]]) {
    let byte = |block: u32, at: usize| (block as usize * 31 + at * 7) as u8;
    let pool: Vec<u8> =
        (0..10).flat_map(|block| (0..block_bytes).map(move |at| byte(block, at))).collect();
    let mut work = Work::default();
    let copy = CopyBlocks {
        to: work.room(10 * block_bytes),
        from: work.bytes(pool),
        pairs: work.integers(pairs.as_flattened()),
        count: pairs.len(),
        block_bytes,
    };
    work.launches = vec![copy.launch().unwrap()];
    let memory = run_everywhere(Module::Blocks, &SHAPE, &work);
    for (index, found) in memory.bytes(copy.to).iter().enumerate() {
        let (block, at) = ((index / block_bytes) as u32, index % block_bytes);
        let source = pairs.iter().find(|[_, to]| *to == block).map(|[from, _]| *from);
        assert_eq!(*found, source.map_or(0xff, |source| byte(source, at)), "{block} {at}");
    }
}

#[test]
fn blocks_are_copied_to_where_they_belong() {
    check(64, &[[3, 5]]);
    check(64, &[[9, 0], [0, 9], [4, 4]]);
    check(40_000, &[[1, 8], [8, 1], [2, 7]]);
    check(20_480, &[[5, 6], [5, 7]]);
}
