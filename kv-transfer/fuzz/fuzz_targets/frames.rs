//! Both sides of a connection are given arbitrary bytes, with the checksums of frames made right,
//! so that what lies behind them is reached.

#![no_main]

use std::sync::{Arc, LazyLock};

use kv_transfer::tcp::wire::HEADER_BYTES;
use kv_transfer::tcp::{Connection, Right, Sender, ServerLimits};
use kv_transfer::{
    BlockCopy, BlockWriter, Capability, HostMemory, KvLayout, Lease, LeaseId, LeaseLimits,
    LeaseTable, LocalPools, LocalSource,
};
use libfuzzer_sys::fuzz_target;
use protocol::WorkerLife;
use tokio::runtime::Runtime;

const BLOCKS: u32 = 8;

fn layout() -> KvLayout {
    let numerics_id = "n".to_string();
    KvLayout { numerics_id, block_size: 2, layers: 1, kv_heads: 1, head_dim: 4, element_bytes: 4 }
}

fn memory() -> Arc<HostMemory> {
    Arc::new(HostMemory::new(BLOCKS as usize, layout().block_bytes()).expect("a little memory"))
}

struct World {
    runtime: Runtime,
    sender: Sender,
    source: Arc<LocalSource>,
    lease: Lease,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let leases = LeaseTable::new(LeaseLimits::default());
    let lease = leases.grant(std::time::Instant::now(), Arc::new(())).expect("the first lease");
    leases.announce(lease.id, &[0, 1, 2, 5]);
    let source = LocalSource { layout: layout(), memory: memory().into(), leases: Arc::new(leases) };
    let (source, pools) = (Arc::new(source), Arc::new(LocalPools::default()));
    pools.add(WorkerLife::new("w", 1), &source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    World { runtime, sender: Sender::new(pools, ServerLimits::default()), source, lease }
});

/// Splits the input into frames at the lengths that it says, and mends magic and checksums.
fn mended(input: &[u8], lease: Lease) -> Vec<u8> {
    let (mut bytes, mut start) = (input.to_vec(), 0);
    while bytes.len() >= start + HEADER_BYTES {
        let (header, rest) = bytes[start..].split_at_mut(HEADER_BYTES);
        header[..5].copy_from_slice(b"SKVT\x01");
        let length = u32::from_le_bytes([header[24], header[25], 0, 0]) as usize % 600;
        let payload = &mut rest[..length.min(input.len() - start - HEADER_BYTES)];
        // No fuzzer guesses a capability.
        if matches!(header[5], 2 | 6) && payload.len() >= 24 {
            payload[..16].copy_from_slice(&lease.capability.to_bytes());
            payload[16..24].copy_from_slice(&lease.id.0.to_le_bytes());
        }
        header[24..28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[28..32].copy_from_slice(&crc(payload).to_le_bytes());
        let mended = crc(&header[..32]).to_le_bytes();
        header[32..].copy_from_slice(&mended);
        start += HEADER_BYTES + payload.len();
    }
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    }) ^ !0
}

async fn talk(bytes: &[u8]) {
    let world = &*WORLD;
    let _ended = world.sender.serve(tokio::io::join(bytes, tokio::io::sink())).await;
    assert_eq!(world.sender.status().reads.load(std::sync::atomic::Ordering::Relaxed), 0);

    let (worker, blocks) = (WorkerLife::new("w", 1), (0..BLOCKS).collect());
    // SAFETY: nobody else has this memory.
    let mut writer = unsafe { BlockWriter::new(memory(), layout(), blocks) };
    let copies = [(0, 2), (1, 3), (2, 4), (5, 0)];
    let copies = copies.map(|(source, destination)| BlockCopy { source, destination });
    let capability = Capability::from_bytes(&[0; 16]).expect("16 bytes");
    let right = Right { worker: &worker, lease: Lease { id: LeaseId(1), capability } };
    if let Ok(mut connection) = Connection::greet(tokio::io::join(bytes, tokio::io::sink())).await {
        let _ended = connection.pull(right, &copies, &mut writer, 1 << 20).await;
    }
}

fuzz_target!(|input: &[u8]| {
    let world = &*WORLD;
    let _renewed = world.source.leases.renew(std::time::Instant::now(), world.lease);
    world.runtime.block_on(async {
        talk(input).await;
        talk(&mended(input, world.lease)).await;
    });
});
