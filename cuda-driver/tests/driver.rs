//! What is made on a GPU works, fails with an error, and leaves nothing.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use cuda_driver::fake::Fake;
use cuda_driver::{Allocation, CudaError, Device, Graph, Mapping, Pinned, RemoteWrites, Stream};

const BYTES: usize = 4096;

/// Copies bytes there and back.
fn round_trip(device: &Arc<Device>) -> Result<(), CudaError> {
    let memory = Allocation::new(device, BYTES)?;
    let (mut from, mut to) = (Pinned::take(device, BYTES)?, Pinned::take(device, BYTES)?);
    // Dropped first, by which it has run.
    let stream = Stream::new(device)?;
    from.slice_mut(0..BYTES).fill(7);
    to.slice_mut(0..BYTES).fill(0);
    let submit = |to: &mut Pinned| -> Result<(), CudaError> {
        // SAFETY: the bytes are pinned and there until the wait; there is room for them.
        unsafe {
            stream.send(memory.address(), from.slice(0..BYTES))?;
            stream.fetch(to.slice_mut(0..BYTES), memory.address())
        }
    };
    submit(&mut to)?;
    stream.wait()?;
    assert!(to.slice(0..BYTES).iter().all(|byte| *byte == 7));
    to.slice_mut(0..BYTES).fill(0);
    let graph: Graph = stream.capture(|| submit(&mut to))?;
    assert!(to.slice(0..BYTES).iter().all(|byte| *byte == 0), "captured is not run");
    for _ in 0..2 {
        // SAFETY: as above.
        unsafe { stream.run(&graph) }?;
        stream.wait()?;
        assert!(to.slice(0..BYTES).iter().all(|byte| *byte == 7));
        to.slice_mut(0..BYTES).fill(0);
    }
    Ok(())
}

#[test]
fn bytes_go_there_and_back_and_work_is_kept() {
    let fake = Fake::new();
    let device = fake.device(1);
    round_trip(&device).unwrap();
    assert_eq!(device.compute_capability(), Ok((9, 0)));
    assert_eq!(device.name().unwrap(), "Fake GPU");
    assert_eq!(device.uuid().unwrap(), "22222222-2222-2222-2222-222222222222");
    drop(device);
    assert_eq!(fake.left(), [""; 0]);
}

#[test]
fn whatever_call_fails_is_an_error_and_leaves_nothing() {
    let fake = Fake::new();
    round_trip(&fake.device(0)).unwrap();
    let mut calls = fake.calls();
    calls.sort();
    calls.dedup();
    // What gives back, what is called past errors, and what came before.
    let is_passed_over = |call: &String| {
        ["Free", "Destroy", "Release", "Pop"].iter().any(|end| call.contains(end))
            || ["cuInit", "cuGetErrorName"].contains(&call.as_str())
    };
    let failing: Vec<String> = calls.into_iter().filter(|call| !is_passed_over(call)).collect();
    assert!(failing.len() > 10, "{failing:?}");
    for call in failing {
        fake.fail(&call, 1, 304);
        let tried = Device::open(&fake.driver, 0).and_then(|device| round_trip(&device));
        assert!(tried.is_err(), "{call}");
        assert_eq!(fake.left(), [""; 0], "{call}");
        round_trip(&fake.device(0)).unwrap();
    }
}

/// What cannot be captured leaves the stream as it was.
#[test]
fn a_capture_that_fails_ends() {
    let fake = Fake::new();
    let device = fake.device(0);
    let stream = Stream::new(&device).unwrap();
    let refused = stream.capture(|| stream.wait());
    assert!(matches!(refused, Err(CudaError::Call { .. })), "{:?}", refused.err());
    stream.wait().unwrap();
    let graph = stream.capture(|| Ok::<(), CudaError>(())).unwrap();
    // SAFETY: there is nothing in it.
    unsafe { stream.run(&graph) }.unwrap();
    drop((graph, stream, device));
    assert_eq!(fake.left(), [""; 0]);
}

/// Another instance of the driver is as another process.
#[test]
fn exported_memory_is_mapped_by_others() {
    let (owner, user) = (Fake::new(), Fake::new());
    let (owners, users) = (owner.device(0), user.device(0));
    let memory = Allocation::new(&owners, BYTES).unwrap();
    let stream = Stream::new(&owners).unwrap();
    let mut buffer = Pinned::take(&owners, BYTES).unwrap();
    buffer.slice_mut(0..BYTES).fill(9);
    // SAFETY: pinned, and there until the wait.
    unsafe { stream.send(memory.address(), buffer.slice(0..BYTES)) }.unwrap();
    stream.wait().unwrap();

    let mapping = Mapping::open(&users, memory.export().unwrap()).unwrap();
    let stream = Stream::new(&users).unwrap();
    let mut found = Pinned::take(&users, BYTES).unwrap();
    // SAFETY: as above.
    unsafe { stream.fetch(found.slice_mut(0..BYTES), mapping.address()) }.unwrap();
    stream.wait().unwrap();
    assert!(found.slice(0..BYTES).iter().all(|byte| *byte == 9));
    drop((found, stream, mapping, users));
    assert_eq!(user.left(), [""; 0]);
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let fake = Fake::new();
    let device = fake.device(0);
    let refused = Allocation::new(&device, 1 << 40).err();
    assert!(matches!(refused, Some(CudaError::OutOfMemory { .. })), "{refused:?}");
}

#[test]
fn network_cards_get_at_memory_where_the_driver_makes_a_file_of_it() {
    const RANGE: &str = "cuMemGetHandleForAddressRange";
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let fake = Fake::new();
    let device = fake.device(0);
    let memory = Allocation::new(&device, BYTES).unwrap();
    let before = files();
    assert_eq!(device.opens_to_rdma(memory.address(), BYTES), Ok(true));
    assert_eq!(files(), before, "only asked for");
    assert_eq!(device.opens_to_rdma(memory.address(), 2 * BYTES), Ok(false));
    fake.fail(RANGE, 1, 801);
    assert_eq!(device.opens_to_rdma(memory.address(), BYTES), Ok(false));
    fake.fail("cuDeviceGetAttribute", 1, 1);
    assert_eq!(device.opens_to_rdma(memory.address(), BYTES), Ok(false), "it does not know of it");
    fake.fail(RANGE, 1, 700);
    let lost = device.opens_to_rdma(memory.address(), BYTES);
    assert!(matches!(lost, Err(CudaError::DeviceLost { .. })), "{lost:?}");

    let older = Device::open(&Fake::without(RANGE).unwrap(), 0).unwrap();
    let memory = Allocation::new(&older, BYTES).unwrap();
    assert_eq!(older.opens_to_rdma(memory.address(), BYTES), Ok(false));
}

#[test]
fn a_gpu_says_how_network_cards_writes_are_ordered() {
    let fake = Fake::new();
    let device = fake.device(0);
    let check = |order, options, expected| {
        fake.order_remote_writes(order, options);
        assert_eq!(device.remote_writes(), Ok(expected), "{order} {options}");
    };
    check(200, 0, RemoteWrites::Ordered);
    check(100, 3, RemoteWrites::Ordered);
    check(0, 3, RemoteWrites::Flushed);
    check(0, 1, RemoteWrites::Flushed);
    check(0, 2, RemoteWrites::Unordered);
    check(0, 0, RemoteWrites::Unordered);
    device.flush_remote_writes().unwrap();
    assert_eq!(fake.count("cuFlushGPUDirectRDMAWrites"), 1);
    fake.fail("cuFlushGPUDirectRDMAWrites", 1, 999);
    assert!(device.flush_remote_writes().is_err());
}
