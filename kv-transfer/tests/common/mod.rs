//! A source and a reader, over any way.

#![allow(dead_code, clippy::unwrap_used)] // helpers of tests; each binary uses a part

pub mod fake_cuda;
pub mod process;
pub mod proxy;
pub mod tls;
pub mod ucx;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake_cuda::{Fake, copy_kernel, pool_with_content};
use kv_transfer::cuda::{CudaMemory, Device};
use kv_transfer::{
    BlockCopy, BlockWriter, HostMemory, KvLayout, KvMemory, Lease, LeaseLimits, LeaseTable,
    LocalPools, LocalSource, Pulled, TransferError, TransferFaults, UCX, Way, Ways, endpoints, tcp,
};
use protocol::{WorkerLife, v1};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Within this every pull ends.
pub const PULL_MAX: Duration = Duration::from_secs(20);

pub fn layout(block_bytes: usize) -> KvLayout {
    let head_dim = block_bytes / 16;
    assert_eq!(block_bytes % 16, 0, "2 (K and V) x 2 tokens x 4 bytes");
    let numerics_id = "n".to_string();
    KvLayout { numerics_id, block_size: 2, layers: 1, kv_heads: 1, head_dim, element_bytes: 4 }
}

pub fn life(incarnation: u64) -> WorkerLife {
    WorkerLife::new("prefill-0", incarnation)
}

/// What a source's block holds: noise that begins anew only at odd places.
pub fn content(block: u32, bytes: usize) -> Vec<u8> {
    let mut noise = [0; 4099];
    SmallRng::seed_from_u64(u64::from(block)).fill_bytes(&mut noise);
    noise.repeat(bytes.div_ceil(noise.len()))[..bytes].to_vec()
}

/// A pool whose blocks hold their `content`.
pub fn source(blocks: u32, layout: KvLayout, limits: LeaseLimits) -> Arc<LocalSource> {
    let bytes = layout.block_bytes();
    let memory = HostMemory::shared(blocks as usize, bytes).unwrap();
    for block in 0..blocks {
        // SAFETY: nobody else has this memory yet.
        unsafe { memory.write(block, 0, bytes) }.copy_from_slice(&content(block, bytes));
    }
    source_in(Arc::new(memory).into(), layout, limits)
}

/// A source whose blocks lie there.
pub fn source_in(memory: KvMemory, layout: KvLayout, limits: LeaseLimits) -> Arc<LocalSource> {
    Arc::new(LocalSource { layout, memory, leases: Arc::new(LeaseTable::new(limits)) })
}

/// A pool that is not on a GPU.
pub fn host(memory: &KvMemory) -> &Arc<HostMemory> {
    let KvMemory::Host(memory) = memory else { panic!("it is on a GPU") };
    memory
}

/// A lease over blocks that are announced.
pub fn lease(source: &LocalSource, blocks: &[u32]) -> Lease {
    let lease = source.leases.grant(now(), Arc::new(())).unwrap();
    source.leases.announce(lease.id, blocks);
    lease
}

pub fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// The destination of `blocks` blocks, which lie scattered in its pool.
pub struct Destination {
    pub memory: KvMemory,
    places: Vec<u32>,
    pub writer: BlockWriter,
}

impl Destination {
    pub fn new(places: Vec<u32>, layout: KvLayout) -> Self {
        let memory = HostMemory::shared(Self::blocks(&places), layout.block_bytes()).unwrap();
        Self::within(Arc::new(memory), places, layout)
    }

    pub fn on(device: &Arc<Device>, places: Vec<u32>, layout: KvLayout) -> Self {
        let memory = CudaMemory::new(device, Self::blocks(&places), layout.block_bytes());
        let memory = memory.unwrap().copied_by(Some(copy_kernel(device)));
        Self::within(Arc::new(memory), places, layout)
    }

    fn blocks(places: &[u32]) -> usize {
        places.iter().max().map_or(1, |last| *last as usize + 2)
    }

    /// In a pool that others fill too, elsewhere.
    pub fn within(memory: impl Into<KvMemory>, places: Vec<u32>, layout: KvLayout) -> Self {
        let memory = memory.into();
        // SAFETY: this test alone uses the memory, and reads only between pulls.
        let writer = unsafe { BlockWriter::new(memory.clone(), layout, places.clone()) };
        Self { memory, places, writer }
    }

    /// Its pool, on the host.
    pub fn memory(&self) -> &Arc<HostMemory> {
        host(&self.memory)
    }

    /// Whether the blocks that are copied are as at the source.
    pub fn has(&self, copies: &[BlockCopy]) -> bool {
        let bytes = self.memory.block_bytes();
        let is_as_at_source =
            |copy: &BlockCopy| self.block(copy.destination) == content(copy.source, bytes);
        copies.iter().all(is_as_at_source)
    }

    /// The bytes of the `index`th block.
    pub fn block(&self, index: usize) -> Vec<u8> {
        self.in_pool(self.places[index])
    }

    fn in_pool(&self, block: u32) -> Vec<u8> {
        // SAFETY: no pull is under way.
        unsafe {
            match &self.memory {
                KvMemory::Host(memory) => memory.read_blocks(block, 1).to_vec(),
                KvMemory::Cuda(memory) => memory.read_blocks(block, 1).unwrap(),
            }
        }
    }

    /// Every block named is as at the source, and every other untouched.
    pub fn assert_holds(&self, copies: &[BlockCopy]) {
        let bytes = self.memory.block_bytes();
        let mut expected = vec![vec![0; bytes]; self.memory.blocks()];
        for copy in copies {
            expected[self.places[copy.destination] as usize] = content(copy.source, bytes);
        }
        for (block, expected) in expected.iter().enumerate() {
            assert!(self.in_pool(block as u32) == *expected, "block {block} differs");
        }
    }
}

/// `sources[i]` into the `i`th block.
pub fn copies(sources: &[u32]) -> Vec<BlockCopy> {
    let copy = |(destination, source): (usize, &u32)| BlockCopy { source: *source, destination };
    sources.iter().enumerate().map(copy).collect()
}

/// Which way a test runs over.
#[derive(Clone, Copy, Debug)]
pub enum Over {
    Local,
    Tcp,
    Tls,
    /// Both pools on one GPU of this process.
    OneGpu,
    /// On two of them.
    TwoGpus,
    /// Two that cannot reach each other.
    GpusApart,
    /// On GPUs that two processes use, each with a driver of its own: here both are this one.
    Cuda,
    /// The same over tcp.
    CudaByTcp,
    /// By UCX, over these of its transports.
    Ucx(&'static str),
    /// The same from GPU to GPU.
    UcxOnGpus,
}

impl Over {
    pub const ALL: [Self; 11] = [
        Self::Local,
        Self::Tcp,
        Self::Tls,
        Self::OneGpu,
        Self::TwoGpus,
        Self::GpusApart,
        Self::Cuda,
        Self::CudaByTcp,
        Self::Ucx("tcp"),
        Self::Ucx("shm,tcp,self"),
        Self::UcxOnGpus,
    ];

    /// UCX's transports, where it goes by them.
    pub fn transports(self) -> Option<&'static str> {
        match self {
            Self::Ucx(transports) => Some(transports),
            Self::UcxOnGpus => Some(ucx::ON_GPUS),
            _ => None,
        }
    }
}

/// The GPUs of a test, if it has some.
#[derive(Default)]
pub struct Gpus {
    pub source: Option<Arc<Device>>,
    pub reader: Option<Arc<Device>>,
    pub fakes: Vec<Fake>,
}

impl Gpus {
    pub fn of(over: Over) -> Self {
        let one = |source, reader| {
            let fake = Fake::new();
            let (source, reader) = (fake.device(source), fake.device(reader));
            Self { source: Some(source), reader: Some(reader), fakes: vec![fake] }
        };
        match over {
            Over::Local | Over::Tcp | Over::Tls | Over::Ucx(_) => Self::default(),
            Over::OneGpu => one(1, 1),
            Over::TwoGpus => one(0, 1),
            Over::GpusApart => {
                let gpus = one(0, 1);
                gpus.fakes[0].allow_peers(false);
                gpus
            }
            Over::Cuda | Over::CudaByTcp | Over::UcxOnGpus => {
                let fakes = vec![Fake::new(), Fake::new()];
                let (source, reader) = (fakes[0].device(0), fakes[1].device(1));
                Self { source: Some(source), reader: Some(reader), fakes }
            }
        }
    }

    /// A pool whose blocks hold their `content`.
    pub fn source(&self, blocks: u32, layout: KvLayout, limits: LeaseLimits) -> Arc<LocalSource> {
        match &self.source {
            None => source(blocks, layout, limits),
            Some(device) => {
                let memory = pool_with_content(device, blocks, &layout);
                source_in(memory.into(), layout, limits)
            }
        }
    }

    pub fn destination(&self, places: Vec<u32>, layout: KvLayout) -> Destination {
        match &self.reader {
            None => Destination::new(places, layout),
            Some(device) => Destination::on(device, places, layout),
        }
    }

    /// Everything that used the GPUs has gone: so is what they had.
    pub async fn end(self) {
        let Self { source, reader, fakes } = self;
        drop((source, reader));
        for fake in &fakes {
            eventually("the driver has nothing left", || fake.left().is_empty()).await;
        }
    }
}

/// A source, and a reader's ways to it.
pub struct System {
    pub source: Arc<LocalSource>,
    pub worker: WorkerLife,
    pub ways: Ways,
    pub endpoints: Vec<v1::KvEndpoint>,
    pub sender: Option<Arc<tcp::Sender>>,
    /// Of the source's pool, over UCX.
    pub agent: Option<kv_transfer::ucx::Agent>,
    over: Over,
    serving: Option<JoinHandle<()>>,
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl System {
    pub async fn new(over: Over, source: Arc<LocalSource>) -> Self {
        Self::with(over, source, LocalPools::default(), tcp::ServerLimits::default()).await
    }

    pub async fn with_faults(
        over: Over,
        source: Arc<LocalSource>,
        faults: Box<dyn TransferFaults>,
    ) -> Self {
        let pools = LocalPools::with_faults(faults);
        Self::with(over, source, pools, tcp::ServerLimits::default()).await
    }

    pub async fn with(
        over: Over,
        source: Arc<LocalSource>,
        pools: LocalPools,
        limits: tcp::ServerLimits,
    ) -> Self {
        let (pools, worker) = (Arc::new(pools), life(1));
        pools.add(worker.clone(), &source);
        let mut system = Self {
            source,
            worker,
            ways: Ways::default(),
            endpoints: Vec::new(),
            sender: None,
            agent: None,
            over,
            serving: None,
        };
        match over {
            Over::Local | Over::OneGpu | Over::TwoGpus | Over::GpusApart => {
                system.ways.local = pools;
            }
            Over::Tcp
            | Over::Tls
            | Over::Cuda
            | Over::CudaByTcp
            | Over::Ucx(_)
            | Over::UcxOnGpus => {
                let server = tcp::Server::bind("127.0.0.1:0", pools, limits).await;
                let mut server = server.unwrap();
                if matches!(over, Over::Tls) {
                    let (accepts, connects) = tls::both_ends();
                    let limits = tcp::ReaderLimits::default();
                    server = server.with_tls(accepts);
                    system.ways.tcp = tcp::Connections::with_tls(limits, connects);
                }
                let address = server.local_address().unwrap().to_string();
                if let Some(transports) = over.transports() {
                    let agent = ucx::agent(&system.source.memory, transports).await;
                    server.sender().lend_by(agent.clone());
                    system.agent = Some(agent);
                }
                let unknown =
                    v1::KvEndpoint { way: "of the future".into(), address: String::new() };
                let known = endpoints(&system.source, system.agent.as_ref(), &address);
                // As on another host.
                let is_apart = matches!(over, Over::CudaByTcp | Over::UcxOnGpus);
                let is_wanted = |endpoint: &v1::KvEndpoint| endpoint.way != "cuda" || !is_apart;
                system.endpoints = [unknown].into_iter().chain(known).filter(is_wanted).collect();
                system.sender = Some(server.sender());
                system.serving = Some(tokio::spawn(server.run()));
            }
        }
        system
    }

    pub fn address(&self) -> &str {
        &self.endpoints.iter().find(|endpoint| endpoint.way == "tcp").unwrap().address
    }

    /// Pulls as a reader does that was given a lease and endpoints.
    pub async fn pull(
        &self,
        worker: &WorkerLife,
        lease: Lease,
        copies: &[BlockCopy],
        destination: &mut Destination,
    ) -> Result<Pulled, TransferError> {
        let mut ways = self.ways.clone();
        if let Some(transports) = self.over.transports() {
            ways.ucx = Some(ucx::agent(&destination.memory, transports).await);
        }
        let way = ways.choose(&self.endpoints, worker)?;
        let deadline = Instant::now() + PULL_MAX;
        let writer = &mut destination.writer;
        let pulled = ways.pull(&way, worker, lease, copies, writer, deadline).await;
        if let Some(agent) = &ways.ucx {
            assert!(matches!(way, Way::Ucx(_)), "{way:?}");
            let status = agent.status();
            assert_eq!(status.failures.load(Ordering::Relaxed), 0, "it was no other way");
            assert!(pulled.as_ref().map_or(true, |pulled| pulled.way == UCX), "{pulled:?}");
            let bytes = copies.len() * destination.memory.block_bytes();
            let expected = if pulled.is_ok() { bytes as u64 } else { 0 };
            assert_eq!(status.bytes.load(Ordering::Relaxed), expected);
        }
        pulled
    }

    /// Ends the source's server, and with it its listener.
    pub async fn stop(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _aborted = serving.await;
    }

    /// Which way it is, as a reader sees it.
    pub fn way(&self) -> Way {
        self.ways.choose(&self.endpoints, &self.worker).unwrap()
    }
}

/// Waits for what must come to be.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PULL_MAX;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
