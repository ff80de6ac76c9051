//! A source and a reader, over any way.

#![allow(dead_code, clippy::unwrap_used)] // helpers of tests; each binary uses a part

pub mod proxy;
pub mod tls;
pub mod ucx;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kv_transfer::{
    BlockCopy, BlockWriter, HostMemory, KvLayout, Lease, LeaseLimits, LeaseTable, LocalPools,
    LocalSource, TransferError, TransferFaults, Way, Ways, tcp,
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
    Arc::new(LocalSource {
        layout,
        memory: Arc::new(memory),
        leases: Arc::new(LeaseTable::new(limits)),
    })
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
    memory: Arc<HostMemory>,
    places: Vec<u32>,
    pub writer: BlockWriter,
}

impl Destination {
    pub fn new(places: Vec<u32>, layout: KvLayout) -> Self {
        let blocks = places.iter().max().map_or(1, |last| *last as usize + 2);
        let memory = Arc::new(HostMemory::shared(blocks, layout.block_bytes()).unwrap());
        Self::within(memory, places, layout)
    }

    /// In a pool that others fill too, elsewhere.
    pub fn within(memory: Arc<HostMemory>, places: Vec<u32>, layout: KvLayout) -> Self {
        // SAFETY: this test alone uses the memory, and reads only between pulls.
        let writer = unsafe { BlockWriter::new(memory.clone(), layout, places.clone()) };
        Self { memory, places, writer }
    }

    /// Its pool.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// Whether the blocks that are copied are as at the source.
    pub fn has(&self, copies: &[BlockCopy]) -> bool {
        let bytes = self.memory.block_bytes();
        let is_as_at_source =
            |copy: &BlockCopy| self.block(copy.destination) == content(copy.source, bytes);
        copies.iter().all(is_as_at_source)
    }

    /// The bytes of the `index`th block.
    pub fn block(&self, index: usize) -> &[u8] {
        // SAFETY: no pull is under way.
        unsafe { self.memory.read(self.places[index], 0, self.memory.block_bytes()) }
    }

    /// Every block named is as at the source, and every other untouched.
    pub fn assert_holds(&self, copies: &[BlockCopy]) {
        let bytes = self.memory.block_bytes();
        let mut expected = vec![vec![0; bytes]; self.memory.blocks()];
        for copy in copies {
            expected[self.places[copy.destination] as usize] = content(copy.source, bytes);
        }
        for (block, expected) in expected.iter().enumerate() {
            // SAFETY: no pull is under way.
            let found = unsafe { self.memory.read(block as u32, 0, bytes) };
            assert!(found == expected, "block {block} differs");
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
    /// By UCX, over these of its transports.
    Ucx(&'static str),
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
            Over::Local => system.ways.local = pools,
            Over::Tcp | Over::Tls | Over::Ucx(_) => {
                let server = tcp::Server::bind("127.0.0.1:0", pools, limits).await;
                let mut server = server.unwrap();
                if matches!(over, Over::Tls) {
                    let (accepts, connects) = tls::both_ends();
                    let limits = tcp::ReaderLimits::default();
                    server = server.with_tls(accepts);
                    system.ways.tcp = tcp::Connections::with_tls(limits, connects);
                }
                let address = server.local_address().unwrap().to_string();
                system.endpoints = vec![
                    v1::KvEndpoint { way: "of the future".into(), address: String::new() },
                    v1::KvEndpoint { way: "tcp".into(), address },
                ];
                if let Over::Ucx(transports) = over {
                    let agent = ucx::agent(&system.source.memory, transports).await;
                    server.sender().lend_by(agent.clone());
                    system.agent = Some(agent);
                    let address = system.endpoints[1].address.clone();
                    system.endpoints.push(v1::KvEndpoint { way: "ucx".into(), address });
                }
                system.sender = Some(server.sender());
                system.serving = Some(tokio::spawn(server.run()));
            }
        }
        system
    }

    pub fn address(&self) -> &str {
        &self.endpoints[1].address
    }

    /// Pulls as a reader does that was given a lease and endpoints.
    pub async fn pull(
        &self,
        worker: &WorkerLife,
        lease: Lease,
        copies: &[BlockCopy],
        destination: &mut Destination,
    ) -> Result<(), TransferError> {
        let mut ways = self.ways.clone();
        if let Over::Ucx(transports) = self.over {
            ways.ucx = Some(ucx::agent(destination.memory(), transports).await);
        }
        let way = ways.choose(&self.endpoints, worker)?;
        let deadline = Instant::now() + PULL_MAX;
        let writer = &mut destination.writer;
        let pulled = ways.pull(&way, worker, lease, copies, writer, deadline).await;
        if let Some(agent) = &ways.ucx {
            assert!(matches!(way, Way::Ucx(_)), "{way:?}");
            let status = agent.status();
            assert_eq!(status.failures.load(Ordering::Relaxed), 0, "it was no other way");
            let bytes = copies.len() * destination.memory().block_bytes();
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
