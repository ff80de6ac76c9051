//! Parts of blocks are gathered one after the other, and scattered back to where they belong.

use cuda_kernels::{BlockRange, Module, gather_blocks, scatter_blocks};

use crate::emulator::{SHAPE, Work, run_everywhere};

#[track_caller]
fn check(block_bytes: usize, offset: usize, bytes: usize, blocks: &[u32]) {
    let byte = |block: u32, at: usize| (block as usize * 31 + at * 7) as u8;
    let pool: Vec<u8> =
        (0..10).flat_map(|block| (0..block_bytes).map(move |at| byte(block, at))).collect();
    let mut work = Work::default();
    let source = BlockRange {
        pool: work.bytes(pool),
        block_bytes,
        offset,
        bytes,
        blocks: work.integers(blocks),
        count: blocks.len(),
    };
    let destination = BlockRange { pool: work.room(10 * block_bytes), ..source };
    let staging = work.room(blocks.len() * bytes);
    work.launches = vec![
        gather_blocks(&source, staging).unwrap(),
        scatter_blocks(&destination, staging).unwrap(),
    ];
    let memory = run_everywhere(Module::Blocks, &SHAPE, &work);
    let expected: Vec<u8> = blocks
        .iter()
        .flat_map(|block| (offset..offset + bytes).map(move |at| byte(*block, at)))
        .collect();
    assert!(memory.bytes(staging) == expected, "gathered");
    for (index, found) in memory.bytes(destination.pool).iter().enumerate() {
        let (block, at) = ((index / block_bytes) as u32, index % block_bytes);
        let is_copied = blocks.contains(&block) && (offset..offset + bytes).contains(&at);
        assert_eq!(*found, if is_copied { byte(block, at) } else { 0xff }, "{block} {at}");
    }
}

#[test]
fn blocks_are_gathered_and_scattered() {
    check(64, 0, 64, &[3]);
    check(64, 16, 32, &[9, 0, 4]);
    check(40_000, 0, 40_000, &[1, 8, 2, 7]);
    check(20_480, 4_096, 8_192, &[5, 6]);
}
