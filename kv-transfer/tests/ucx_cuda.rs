//! Pulls by UCX between pools on GPUs: a real UCX with its module for CUDA, over its tcp, on GPUs of a
//! driver for tests. `tests/conformance.rs` has what holds for all ways.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::fake_cuda::{Fake, pool_with_content, write_later};
use common::ucx::{ON_GPUS, agent, launch, soon, strike, until_back};
use common::*;
use kv_transfer::cuda::CudaMemory;
use kv_transfer::tcp::Right;
use kv_transfer::ucx::{Agent, Launch};
use kv_transfer::{Advice, KvMemory, LeaseLimits, TCP, TransferError, Way, Ways};
use rustix::process::Signal;

const BLOCKS: u32 = 8;
const BLOCK_BYTES: usize = 1 << 20;
const LOST: i32 = 700;

fn on_gpu(memory: &KvMemory) -> &Arc<CudaMemory> {
    let KvMemory::Cuda(memory) = memory else { panic!("it is on a GPU") };
    memory
}

/// Block 0 is still to be written, by a kernel that nobody waits for.
fn write_first_block_later(fake: &Fake, memory: &CudaMemory, bytes: &[u8]) {
    write_later(fake, memory, 0, bytes);
    // SAFETY: the default stream.
    unsafe { memory.record_written(std::ptr::null_mut()) }.unwrap();
}

/// A source of all its blocks and a reader's pool, on GPUs that see nothing of each other.
struct OnGpus {
    gpus: Gpus,
    system: System,
    destination: Destination,
}

impl OnGpus {
    async fn new() -> Self {
        let gpus = Gpus::of(Over::UcxOnGpus);
        let source = gpus.source(BLOCKS, layout(BLOCK_BYTES), LeaseLimits::default());
        let system = System::new(Over::UcxOnGpus, source).await;
        let destination = gpus.destination(Vec::from_iter(0..BLOCKS), layout(BLOCK_BYTES));
        Self { gpus, system, destination }
    }

    /// By the reader's agent and by nothing else.
    async fn pull(&mut self, reader: &Agent) -> Result<(), TransferError> {
        let lease = lease(&self.system.source, &Vec::from_iter(0..BLOCKS));
        let (worker, copies) = (life(1), copies(&Vec::from_iter(0..BLOCKS)));
        let right = Right { worker: &worker, lease };
        let (connections, address) = (&self.system.ways.tcp, self.system.address().to_string());
        let writer = &mut self.destination.writer;
        let pulled = reader.pull(connections, &address, right, &copies, writer, soon()).await;
        self.system.source.leases.revoke(lease.id);
        pulled
    }

    fn has_all(&self) -> bool {
        self.destination.has(&copies(&Vec::from_iter(0..BLOCKS)))
    }

    async fn end(self) {
        let Self { gpus, system, destination } = self;
        drop((system, destination));
        gpus.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_wait_for_what_their_gpus_still_do() {
    let mut on_gpus = OnGpus::new().await;
    let reader = agent(&on_gpus.destination.memory, ON_GPUS).await;
    let source = on_gpu(&on_gpus.system.source.memory).clone();
    // SAFETY: no pull is under way.
    unsafe { source.write_blocks(0, &[0; BLOCK_BYTES]) }.unwrap();
    write_first_block_later(&on_gpus.gpus.fakes[0], &source, &content(0, BLOCK_BYTES));
    let destination = on_gpu(&on_gpus.destination.memory).clone();
    write_first_block_later(&on_gpus.gpus.fakes[1], &destination, &[7; BLOCK_BYTES]);
    on_gpus.pull(&reader).await.unwrap();
    assert!(on_gpus.has_all(), "block 0 has what the source's kernel wrote, and that alone");
    drop((source, destination, reader));
    on_gpus.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_is_lost_is_no_source_and_no_destination() {
    for lost in [0, 1] {
        let mut on_gpus = OnGpus::new().await;
        let reader = agent(&on_gpus.destination.memory, ON_GPUS).await;
        on_gpus.gpus.fakes[lost].fail("cuEventSynchronize", 0, LOST);
        let error = on_gpus.pull(&reader).await.unwrap_err();
        if lost == 0 {
            assert!(matches!(error, TransferError::SourceGone(_)), "{error:?}");
        } else {
            assert!(matches!(error, TransferError::Cuda(_)), "{error:?}");
            assert_eq!(error.advice(), Advice::Fatal);
        }
        assert_eq!(reader.status().gets.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_gpu_does_not_settle_comes_over_tcp() {
    let mut on_gpus = OnGpus::new().await;
    let launch = with(launch(ON_GPUS), "FAKE_CUDA_FAIL", "cuFlushGPUDirectRDMAWrites:999");
    let reader = Agent::start(&on_gpus.destination.memory, launch).await.unwrap();
    let error = on_gpus.pull(&reader).await.unwrap_err();
    assert!(matches!(error, TransferError::Ucx(..)), "{error:?}");
    assert!(error.to_string().contains("cuFlushGPUDirectRDMAWrites"), "{error}");

    let ways = Ways { ucx: Some(reader), ..on_gpus.system.ways.clone() };
    let all = Vec::from_iter(0..BLOCKS);
    let (lease, copies, worker) = (lease(&on_gpus.system.source, &all), copies(&all), life(1));
    let agent = ways.ucx.as_ref().unwrap();
    until_back(agent).await;
    let way = ways.choose(&on_gpus.system.endpoints, &worker).unwrap();
    assert!(matches!(way, Way::Ucx(_)), "{way:?}");
    let writer = &mut on_gpus.destination.writer;
    let pulled = ways.pull(&way, &worker, lease, &copies, writer, soon()).await.unwrap();
    assert_eq!(pulled.way, TCP);
    assert!(on_gpus.has_all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_settles_by_itself_is_not_asked() {
    let mut on_gpus = OnGpus::new().await;
    let failing = with(launch(ON_GPUS), "FAKE_CUDA_FAIL", "cuFlushGPUDirectRDMAWrites:999");
    let reader =
        Agent::start(&on_gpus.destination.memory, with(failing, "FAKE_CUDA_WRITES", "100:1"));
    on_gpus.pull(&reader.await.unwrap()).await.unwrap();
    assert!(on_gpus.has_all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_leaves_the_pool_and_another_comes() {
    let mut on_gpus = OnGpus::new().await;
    let reader = agent(&on_gpus.destination.memory, ON_GPUS).await;
    for struck in [&reader, on_gpus.system.agent.as_ref().unwrap()] {
        strike(struck, Signal::KILL);
        until_back(struck).await;
    }
    on_gpus.pull(&reader).await.unwrap();
    assert!(on_gpus.has_all());
    drop(reader);
    on_gpus.end().await;
}

fn with(mut launch: Launch, name: &str, value: &str) -> Launch {
    launch.environment.push((name.into(), value.into()));
    launch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_said_in_a_sentence() {
    let fake = Fake::new();
    let memory = KvMemory::from(pool_with_content(&fake.device(0), 4, &layout(64)));
    let failing = |calls: &str| with(launch(ON_GPUS), "FAKE_CUDA_FAIL", calls);
    let without_driver = launch("tcp");
    let cases = [
        (failing("cuMemGetHandleForAddressRange:801"), "network cards do not get at this GPU"),
        (failing("cuIpcOpenMemHandle_v2:304"), "cannot be shared between these processes"),
        (failing("cuDevicePrimaryCtxRetain:2"), "no memory left"),
        (with(launch(ON_GPUS), "UCX_TLS", "tcp"), "UCX_TLS, if set, has to name cuda_copy"),
        // As where nobody says anything: UCX has no RDMA device here.
        (with(launch(ON_GPUS), "UCX_TLS", "^cuda_ipc,gdr_copy"), "no network device of UCX has"),
        (with(launch(ON_GPUS), "FAKE_CUDA_WRITES", "0:0"), "in no order that holds"),
        (without_driver, "there is no NVIDIA driver here"),
    ];
    for (launch, expected) in cases {
        let error = Agent::start(&memory, launch).await.err().unwrap().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    fake.fail("cuIpcGetMemHandle", 0, 801);
    let error = Agent::start(&memory, launch(ON_GPUS)).await.err();
    // It was asked before, and remembers.
    assert!(error.is_none(), "{error:?}");
    let other = KvMemory::from(pool_with_content(&fake.device(0), 4, &layout(64)));
    let error = Agent::start(&other, launch(ON_GPUS)).await.err().unwrap().to_string();
    assert!(error.contains("cuIpcGetMemHandle"), "{error}");
}
