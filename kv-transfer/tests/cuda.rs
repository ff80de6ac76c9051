//! GPUs that do not do what they are asked, and what is asked of them in which order. Over a driver
//! of the tests' own, which counts what is left and notices wrong use.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::fake_cuda::{Fake, write_later};
use common::process::{ROLE, say};
use common::*;
use kv_transfer::cuda::{CudaError, CudaMemory, Device, Driver};
use kv_transfer::{
    Advice, Capability, KvMemory, Lease, LeaseError, LeaseLimits, LocalSource, Pulled, TCP,
    TransferError, Way,
};
use tokio::time::Instant;

const BLOCK_BYTES: usize = 4096;

/// Two runs.
const WANTED: [u32; 4] = [5, 6, 1, 2];

/// A source on a GPU, and a reader on one, in one process or in what stands for two.
struct World {
    gpus: Gpus,
    system: System,
    lease: Lease,
}

impl World {
    async fn new(over: Over) -> Self {
        Self::where_fails(over, None).await
    }

    /// With a call that fails once its side has a pool: which side, which call, and with what.
    async fn where_fails(over: Over, fault: Option<(usize, &str, i32)>) -> Self {
        let gpus = Gpus::of(over);
        let source = gpus.source(8, layout(BLOCK_BYTES), LeaseLimits::default());
        if let Some((side, call, code)) = fault {
            gpus.fakes[side].fail(call, 0, code);
        }
        let system = System::new(over, source).await;
        let lease = lease(&system.source, &WANTED);
        let world = Self { gpus, system, lease };
        world.gpus.fakes.iter().for_each(|fake| drop(fake.calls()));
        world
    }

    fn destination(&self) -> Destination {
        self.gpus.destination(vec![0, 1, 2, 3], layout(BLOCK_BYTES))
    }

    async fn pull(&self, destination: &mut Destination) -> Result<Pulled, TransferError> {
        let (worker, copies) = (&self.system.worker, copies(&WANTED));
        self.system.pull(worker, self.lease, &copies, destination).await
    }

    /// The driver of the side that reads.
    fn reader(&self) -> &Fake {
        self.gpus.fakes.last().unwrap()
    }

    fn source_memory(&self) -> &CudaMemory {
        memory_of(&self.system.source)
    }

    async fn end(self) {
        drop(self.system);
        self.gpus.end().await;
    }
}

fn memory_of(source: &LocalSource) -> &CudaMemory {
    match &source.memory {
        KvMemory::Cuda(memory) => memory,
        KvMemory::Host(_) => panic!("it is on a GPU"),
    }
}

const BETWEEN_GPUS: [Over; 5] =
    [Over::OneGpu, Over::TwoGpus, Over::GpusApart, Over::Cuda, Over::CudaByTcp];

#[test]
fn a_driver_without_a_function_is_too_old() {
    for symbol in ["cuIpcOpenMemHandle_v2", "cuStreamCreateWithPriority", "cuInit"] {
        let error = Fake::without(symbol).err().unwrap();
        assert_eq!(error, CudaError::OldDriver { symbol });
        assert!(error.to_string().contains(symbol), "{error}");
    }
}

/// Runs itself in a process that finds the tests' driver.
#[test]
fn a_driver_is_found_by_its_name() {
    if std::env::var(ROLE).is_ok() {
        return say(Driver::load().and_then(|driver| driver.devices()).unwrap());
    }
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{}", std::process::id()));
    Fake::install(&folder);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_driver_is_found_by_its_name", "--nocapture"])
        .env(ROLE, "itself")
        .env("LD_LIBRARY_PATH", &folder)
        .output()
        .unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.contains("said: 2\n"), "{output}");
}

#[test]
fn gpus_and_pools_that_cannot_be_had_are_named() {
    let fake = Fake::new();
    let absent = Device::open(&fake.driver, 7).err().unwrap();
    assert_eq!(absent, CudaError::NoDevice { ordinal: 7, devices: 2 });
    let device = fake.device(1);
    for (blocks, block_bytes) in [(1 << 11, 1 << 20), (usize::MAX, 2), (0, 4096)] {
        let error = CudaMemory::new(&device, blocks, block_bytes).err().unwrap();
        assert!(matches!(error, CudaError::PoolTooLarge { ordinal: 1, .. }), "{error:?}");
        assert!(error.to_string().contains("--kv-blocks"), "{error}");
    }
    let pool = CudaMemory::new(&device, 3, 4096).unwrap();
    // SAFETY: nobody else has this pool.
    assert_eq!(unsafe { pool.read_blocks(0, 3) }.unwrap(), vec![0; 3 * 4096], "it is zeroed");
    drop((pool, device));
    assert_eq!(fake.left(), [""; 0]);
}

#[tokio::test]
async fn copies_wait_for_the_kernels_that_wrote_the_blocks() {
    for over in BETWEEN_GPUS {
        for is_recorded in [true, false] {
            let world = World::new(over).await;
            // Before: zeroing it waits for what its GPU does.
            let mut destination = world.destination();
            let memory = world.source_memory();
            write_later(&world.gpus.fakes[0], memory, WANTED[0], &[0x5A; BLOCK_BYTES]);
            if is_recorded {
                // SAFETY: the default stream.
                unsafe { memory.record_written(std::ptr::null_mut()) }.unwrap();
            }
            world.pull(&mut destination).await.unwrap();
            let expected = match is_recorded {
                true => vec![0x5A; BLOCK_BYTES],
                // What the kernel has not written yet: so the driver does notice.
                false => content(WANTED[0], BLOCK_BYTES),
            };
            assert!(destination.block(0) == expected, "{over:?}, recorded: {is_recorded}");
            assert!(destination.block(1) == content(WANTED[1], BLOCK_BYTES), "{over:?}");
            drop(destination);
            world.end().await;
        }
    }
}

/// A launch takes the place of a copy for each block, where the GPU reaches the source's memory.
#[tokio::test]
async fn many_small_blocks_come_by_one_launch() {
    // No two of them follow each other on both sides.
    let wanted: Vec<u32> = (0..20).map(|index| index * 7 % 20).collect();
    for (over, launches, driver_copies) in [
        (Over::OneGpu, 1, 0),
        (Over::TwoGpus, 1, 0),
        (Over::Cuda, 1, 0),
        (Over::GpusApart, 0, wanted.len()),
    ] {
        let gpus = Gpus::of(over);
        let source = gpus.source(20, layout(BLOCK_BYTES), LeaseLimits::default());
        let system = System::new(over, source).await;
        let lease = lease(&system.source, &wanted);
        let mut destination = gpus.destination((0..20).collect(), layout(BLOCK_BYTES));
        let reader = gpus.fakes.last().unwrap();
        drop(reader.calls());
        let copies = copies(&wanted);
        system.pull(&system.worker, lease, &copies, &mut destination).await.unwrap();
        let calls = reader.calls();
        let count = |of: &str| calls.iter().filter(|call| call.starts_with(of)).count();
        assert_eq!(count("cuLaunchKernel"), launches, "{over:?}");
        let copied = count("cuMemcpyDtoDAsync") + count("cuMemcpyPeerAsync");
        assert_eq!(copied, driver_copies, "{over:?}");
        assert!(destination.has(&copies), "{over:?}");
        drop((destination, system));
        gpus.end().await;
    }
}

#[tokio::test]
async fn calls_come_in_order_and_what_is_made_is_used_again() {
    let copy_of = |over| match over {
        Over::TwoGpus | Over::GpusApart => "cuMemcpyPeerAsync",
        Over::CudaByTcp => "cuMemcpyHtoDAsync_v2",
        _ => "cuMemcpyDtoDAsync_v2",
    };
    for over in BETWEEN_GPUS {
        let world = World::new(over).await;
        let mut destination = world.destination();
        drop(world.reader().calls());
        world.pull(&mut destination).await.unwrap();
        let first = world.reader().calls();
        world.pull(&mut destination).await.unwrap();
        let second = world.reader().calls();
        destination.assert_holds(&copies(&WANTED));

        for calls in [&first, &second] {
            let of = |name: &str| calls.iter().filter(|call| *call == name).count();
            let last = |name: &str| calls.iter().rposition(|call| call == name);
            let at = |name: &str| calls.iter().position(|call| call == name);
            assert_eq!(of(copy_of(over)), 2, "{over:?}: one copy per run: {calls:?}");
            assert!(at("cuStreamWaitEvent") < at(copy_of(over)), "{over:?}: {calls:?}");
            assert!(last(copy_of(over)) < last("cuEventRecord"), "{over:?}: {calls:?}");
            assert!(last("cuEventRecord") < last("cuEventSynchronize"), "{over:?}: {calls:?}");
        }
        for made in [
            "cuDeviceCanAccessPeer",
            "cuCtxEnablePeerAccess",
            "cuStreamCreateWithPriority",
            "cuEventCreate",
            "cuMemHostAlloc",
            "cuIpcOpenMemHandle_v2",
            "cuIpcOpenEventHandle",
        ] {
            assert!(!second.contains(&made.to_string()), "{over:?}: {made} again");
        }
        let enabled = first.iter().filter(|call| *call == "cuCtxEnablePeerAccess").count();
        assert_eq!(enabled, usize::from(matches!(over, Over::TwoGpus)), "{over:?}");
        drop(destination);
        world.end().await;
    }
}

#[tokio::test]
async fn pools_that_cannot_be_mapped_are_read_over_tcp_from_then_on() {
    let refusals = [
        (0, "cuIpcGetMemHandle", 801),
        (0, "cuIpcGetEventHandle", 801),
        (1, "cuIpcOpenMemHandle_v2", 217),
        (1, "cuIpcOpenMemHandle_v2", 304),
        (1, "cuIpcOpenMemHandle_v2", 400),
        (1, "cuIpcOpenMemHandle_v2", 2),
        (1, "cuIpcOpenEventHandle", 801),
        (1, "cuMemcpyDtoDAsync_v2", 999),
    ];
    for (side, call, code) in refusals {
        let world = World::where_fails(Over::Cuda, Some((side, call, code))).await;
        assert!(matches!(world.system.way(), Way::Cuda(_)));
        let mut destination = world.destination();
        let pulled = world.pull(&mut destination).await.unwrap();
        assert_eq!(pulled.way, TCP, "{call}");
        destination.assert_holds(&copies(&WANTED));
        assert!(matches!(world.system.way(), Way::Tcp(_)), "{call}: it is not tried again");
        assert_eq!(world.system.source.leases.finish(now(), world.lease), Ok(()));
        drop(destination);
        world.end().await;
    }
    let world = World::new(Over::Cuda).await;
    world.reader().allow_peers(false);
    let mut destination = world.destination();
    assert_eq!(world.pull(&mut destination).await.unwrap().way, TCP);
    destination.assert_holds(&copies(&WANTED));
    drop(destination);
    world.end().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_shared_leaves_the_pool_to_its_process() {
    let gpus = Gpus::of(Over::Cuda);
    // The first event made after this is the pool's.
    gpus.fakes[0].fail("cuEventCreate", 1, 801);
    let source = gpus.source(8, layout(BLOCK_BYTES), LeaseLimits::default());
    let system = System::new(Over::Cuda, source).await;
    let lease = lease(&system.source, &WANTED);
    let world = World { gpus, system, lease };
    let mut destination = world.destination();
    world.pull(&mut destination).await.unwrap();
    destination.assert_holds(&copies(&WANTED));
    assert!(matches!(world.system.way(), Way::Tcp(_)));
    drop(destination);
    world.end().await;
}

#[tokio::test]
async fn a_lost_gpu_is_an_error_that_says_so_and_leaves_nothing() {
    for over in BETWEEN_GPUS {
        let copy = match over {
            Over::TwoGpus | Over::GpusApart => "cuMemcpyPeerAsync",
            Over::CudaByTcp => "cuMemcpyHtoDAsync_v2",
            _ => "cuMemcpyDtoDAsync_v2",
        };
        for (call, code) in [(copy, 719), (copy, 700), ("execution", 214), ("cuEventRecord", 719)] {
            let world = World::new(over).await;
            let mut destination = world.destination();
            world.reader().fail(call, 1, code);
            let error = world.pull(&mut destination).await.unwrap_err();
            let TransferError::Cuda(lost) = &error else { panic!("{over:?} {call}: {error:?}") };
            assert!(lost.is_device_lost(), "{over:?} {call}: {error:?}");
            assert_eq!(error.advice(), Advice::Fatal);
            assert!(error.to_string().contains("has to be restarted"), "{error}");
            let again = world.pull(&mut destination).await.unwrap_err();
            assert!(matches!(again, TransferError::Cuda(_)), "{over:?} {call}: {again:?}");
            drop(destination);
            world.end().await;
        }
    }
}

#[tokio::test]
async fn a_source_that_lost_its_gpu_is_gone() {
    for (over, call) in [
        (Over::CudaByTcp, "cuMemcpyDtoHAsync_v2"),
        (Over::CudaByTcp, "execution"),
        (Over::CudaByTcp, "cuStreamWaitEvent"),
        (Over::Cuda, "cuIpcGetMemHandle"),
    ] {
        let world = World::where_fails(over, Some((0, call, 719))).await;
        let mut destination = world.destination();
        let error = world.pull(&mut destination).await.unwrap_err();
        assert!(matches!(error, TransferError::SourceGone(_)), "{over:?} {call}: {error:?}");
        assert_eq!(error.advice(), Advice::RetryOther);
        drop(destination);
        world.end().await;
    }
}

/// Each call that a pull makes fails once, in each of several ways, on each side: the pull ends well
/// or with an error, the next one is well unless the GPU is lost, and nothing is left.
#[tokio::test]
async fn whatever_call_fails_nothing_is_left_and_the_next_pull_is_well() {
    for over in BETWEEN_GPUS {
        let world = World::new(over).await;
        let mut destination = world.destination();
        world.gpus.fakes.iter().for_each(|fake| drop(fake.calls()));
        world.pull(&mut destination).await.unwrap();
        let calls: Vec<_> = world.gpus.fakes.iter().map(Fake::calls).collect();
        drop(destination);
        world.end().await;
        for (side, calls) in calls.iter().enumerate() {
            let mut seen = HashMap::<&str, i32>::new();
            for call in calls {
                let nth = seen.entry(call.as_str()).and_modify(|nth| *nth += 1).or_insert(1);
                for code in [2, 719, 999] {
                    fail_once(over, side, call, *nth, code).await;
                }
            }
        }
    }
}

async fn fail_once(over: Over, side: usize, call: &str, nth: i32, code: i32) {
    let case = format!("{over:?}: {call} number {nth} on side {side} fails with {code}");
    let world = World::new(over).await;
    let mut destination = world.destination();
    world.gpus.fakes[side].fail(call, nth, code);
    let pulled = world.pull(&mut destination).await;
    world.gpus.fakes[side].fail(call, 0, 0);
    let is_lost = code == 719;
    if pulled.is_ok() && !is_lost {
        destination.assert_holds(&copies(&WANTED));
    }
    if !is_lost {
        let mut destination = world.destination();
        world.pull(&mut destination).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        destination.assert_holds(&copies(&WANTED));
    }
    if let Some(sender) = &world.system.sender {
        let reads = || sender.status().reads.load(Ordering::Relaxed);
        eventually(&format!("{case}: no read"), || reads() == 0).await;
    }
    assert_eq!(world.system.source.leases.finish(now(), world.lease), Ok(()), "{case}: a pin");
    drop(destination);
    drop(world.system);
    let Gpus { source, reader, fakes } = world.gpus;
    drop((source, reader));
    for fake in fakes {
        eventually(&format!("{case}: nothing is left"), || fake.left().is_empty()).await;
    }
}

#[tokio::test]
async fn handles_are_given_to_nobody_without_a_lease() {
    let world = World::new(Over::Cuda).await;
    let mut destination = world.destination();
    let capability = Capability::from_bytes(&[7; 16]).unwrap();
    let forged = Lease { capability, ..world.lease };
    for (lease, wanted) in [(forged, 5), (world.lease, 0)] {
        let worker = &world.system.worker;
        let pulled = world.system.pull(worker, lease, &copies(&[wanted]), &mut destination).await;
        assert!(matches!(pulled, Err(TransferError::Lease(_))), "{pulled:?}");
    }
    assert_eq!(world.gpus.fakes[0].count("cuIpcGetMemHandle"), 0);
    drop(destination);
    world.end().await;
}

/// Waits until a copy is under way.
async fn until_copying(world: &World) {
    let mut seen = Vec::new();
    eventually("a copy is waited for", || {
        seen.extend(world.reader().calls());
        seen.iter().any(|call| call == "cuEventSynchronize")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ends_while_blocks_are_copied_makes_them_count_for_nothing() {
    let world = World::new(Over::Cuda).await;
    let mut destination = world.destination();
    world.reader().hold(true);
    let ending = async {
        until_copying(&world).await;
        world.system.source.leases.revoke(world.lease.id);
        assert_eq!(world.system.source.leases.collect(now()), 0, "it is pinned");
        world.reader().hold(false);
    };
    let (pulled, ()) = tokio::join!(world.pull(&mut destination), ending);
    assert!(matches!(pulled, Err(TransferError::Lease(LeaseError::Unknown))), "{pulled:?}");
    assert_eq!(world.system.source.leases.collect(now()), 1);
    drop(destination);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_waits_for_the_copy_that_has_begun() {
    let world = World::new(Over::Cuda).await;
    let mut destination = world.destination();
    world.reader().hold(true);
    let soon = Instant::now() + Duration::from_millis(100);
    let (way, copies) = (world.system.way(), copies(&WANTED));
    let (ways, worker) = (&world.system.ways, &world.system.worker);
    let pulling = async {
        let writer = &mut destination.writer;
        let pulled = ways.pull(&way, worker, world.lease, &copies, writer, soon).await;
        (pulled, Instant::now())
    };
    let releasing = async {
        until_copying(&world).await;
        tokio::time::sleep_until(soon + Duration::from_millis(50)).await;
        let released = Instant::now();
        world.reader().hold(false);
        released
    };
    let ((pulled, ended), released) = tokio::join!(pulling, releasing);
    assert!(matches!(pulled, Err(TransferError::Deadline(_))), "{pulled:?}");
    assert!(ended >= released, "blocks may still be written");
    drop(destination);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_dropped_waits_for_the_copy_that_has_begun() {
    for over in [Over::Cuda, Over::CudaByTcp] {
        let world = World::new(over).await;
        let mut destination = world.destination();
        world.reader().hold(true);
        let is_copying = AtomicBool::new(false);
        let dropped = std::thread::scope(|scope| {
            let runtime = tokio::runtime::Handle::current();
            let (world, destination, is_copying) = (&world, &mut destination, &is_copying);
            let dropped = scope.spawn(move || {
                // Before the pull is dropped, which waits.
                let copying = async {
                    until_copying(world).await;
                    is_copying.store(true, Ordering::Relaxed);
                };
                runtime.block_on(async {
                    tokio::select! {
                        pulled = world.pull(destination) => panic!("{pulled:?}"),
                        () = copying => {}
                    }
                });
                // The pull was dropped: the copies have ended, so that this reads what they wrote.
                destination.assert_holds(&copies(&WANTED));
            });
            let mut calls = Vec::new();
            while !calls.contains(&"cuStreamSynchronize".to_string()) {
                if is_copying.load(Ordering::Relaxed) {
                    calls.extend(world.reader().calls());
                }
                assert!(!dropped.is_finished(), "{over:?}: it did not wait");
                std::thread::yield_now();
            }
            assert!(!dropped.is_finished(), "{over:?}: it did not wait");
            world.reader().hold(false);
            dropped.join()
        });
        dropped.unwrap();
        assert_eq!(world.system.ways.tcp.pulls(), 0);
        drop(destination);
        world.end().await;
    }
}

#[tokio::test]
async fn what_is_mapped_goes_with_its_source() {
    let mut world = World::new(Over::Cuda).await;
    let mut destination = world.destination();
    world.pull(&mut destination).await.unwrap();
    assert_eq!(world.system.ways.cuda.mappings(), 1);
    world.system.stop().await;
    let cuda = world.system.ways.cuda.clone();
    eventually("it is unmapped", || cuda.mappings() == 0).await;
    let pulled = world.pull(&mut destination).await;
    assert!(matches!(pulled, Err(TransferError::Connect(..))), "{pulled:?}");
    drop((destination, cuda));
    world.end().await;
}

#[tokio::test]
async fn pools_of_host_and_gpu_exchange_blocks_too() {
    for (source_is_on_gpu, over) in
        [(true, Over::Local), (false, Over::Local), (true, Over::Tcp), (false, Over::Tcp)]
    {
        let gpus = Gpus::of(Over::OneGpu);
        let on_host = Gpus::default();
        let (from, to) = if source_is_on_gpu { (&gpus, &on_host) } else { (&on_host, &gpus) };
        let source = from.source(8, layout(BLOCK_BYTES), LeaseLimits::default());
        let system = System::new(over, source).await;
        let lease = lease(&system.source, &WANTED);
        let mut destination = to.destination(vec![3, 0, 1, 2], layout(BLOCK_BYTES));
        let copies = copies(&WANTED);
        system.pull(&system.worker, lease, &copies, &mut destination).await.unwrap();
        destination.assert_holds(&copies);
        drop((destination, system));
        gpus.end().await;
    }
}

#[tokio::test]
async fn many_readers_share_one_mapping() {
    let world = Arc::new(World::new(Over::Cuda).await);
    let reader = |_| {
        let world = world.clone();
        tokio::spawn(async move {
            let mut destination = world.destination();
            world.pull(&mut destination).await.unwrap();
            destination.assert_holds(&copies(&WANTED));
        })
    };
    let readers: Vec<_> = (0..32).map(reader).collect();
    for reader in readers {
        reader.await.unwrap();
    }
    let calls = world.reader().calls();
    let opened = calls.iter().filter(|call| *call == "cuIpcOpenMemHandle_v2").count();
    assert_eq!(opened, 1);
    Arc::into_inner(world).unwrap().end().await;
}
