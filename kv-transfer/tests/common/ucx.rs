//! Agents of pools, with a real UCX.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use kv_transfer::tcp::Right;
use kv_transfer::ucx::{Agent, Launch};
use kv_transfer::{
    BlockCopy, HostMemory, KvMemory, Lease, LeaseError, LeaseLimits, TransferError, Ways,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{
    Destination, Over, PULL_MAX, System, copies, eventually, fake_cuda, layout, lease, life, now,
    source,
};

/// An agent over these of UCX's transports, on loopback.
pub async fn agent(memory: &(impl Clone + Into<KvMemory>), transports: &str) -> Agent {
    match Agent::start(&memory.clone().into(), launch(transports)).await {
        Ok(agent) => agent,
        Err(error) => panic!("no UCX agent: {error}"),
    }
}

/// How it is started.
pub fn launch(transports: &str) -> Launch {
    let program = env!("CARGO_BIN_EXE_kv-ucx-agent").into();
    let variable = |name: &str, value: &str| (name.into(), value.into());
    let mut environment = vec![variable("UCX_TLS", transports), variable("UCX_NET_DEVICES", "lo")];
    let mut folders: Vec<PathBuf> = libraries().into_iter().collect();
    if transports == ON_GPUS {
        folders.extend(fake_cuda::with_nvml());
    }
    if !folders.is_empty() {
        environment.push(("LD_LIBRARY_PATH".into(), std::env::join_paths(folders).unwrap()));
    }
    Launch { program, arguments: Vec::new(), environment }
}

/// Where libucp is: in `STATOR_UCX_LIBRARIES`, where `make test` installs it, or where the system
/// finds it by itself (none).
///
/// Panics where it is not, and says how to get it.
fn libraries() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os("STATOR_UCX_LIBRARIES") {
        return Some(directory.into());
    }
    installed("lib").or_else(|| {
        let found = SYSTEM.iter().any(|directory| Path::new(directory).join(LIBRARY).exists());
        assert!(
            found,
            "these tests need UCX 1.13 or newer: run `make test`, which installs it, or install it \
             (Debian: libucx0), or set STATOR_UCX_LIBRARIES to the directory of its {LIBRARY}"
        );
        None
    })
}

const LIBRARY: &str = "libucp.so.0";

/// Where distributions put libraries.
const SYSTEM: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// A directory of the package that `make test` installs.
pub fn installed(directory: &str) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pythons = std::fs::read_dir(repository.join("target/venv/lib")).ok()?;
    let places =
        pythons.flatten().map(|python| python.path().join("site-packages/libucx").join(directory));
    places.into_iter().find(|place| place.exists())
}

/// Transports for pools on GPUs.
pub const ON_GPUS: &str = "tcp,cuda_copy";

/// Much enough that it is not done before it is struck.
pub const BLOCKS: u32 = 64;
pub const BLOCK_BYTES: usize = 4 << 20;

/// What a busy machine adds to a limit.
pub const BUSY: Duration = Duration::from_secs(2);

/// A source of all its blocks, and a reader, each with an agent.
pub struct Pair {
    pub system: System,
    pub lease: Lease,
    pub reader: Agent,
    pub destination: Destination,
}

pub type Pulled = (Result<(), TransferError>, Destination);

impl Pair {
    pub async fn new(blocks: u32, block_bytes: usize, limits: LeaseLimits) -> Self {
        let source = source(blocks, layout(block_bytes), limits);
        let lease = lease(&source, &Vec::from_iter(0..blocks));
        let system = System::new(Over::Ucx("tcp"), source).await;
        let destination = Destination::new(Vec::from_iter(0..blocks), layout(block_bytes));
        let reader = agent(destination.memory(), "tcp").await;
        Self { system, lease, reader, destination }
    }

    pub async fn large() -> Self {
        Self::new(BLOCKS, BLOCK_BYTES, LeaseLimits::default()).await
    }

    pub fn copies(&self) -> Vec<BlockCopy> {
        // No two neighbours, so that each block is a copy of its own.
        let blocks = self.system.source.memory.blocks() as u32;
        copies(&(0..blocks).rev().collect::<Vec<_>>())
    }

    /// The reader's blocks are moved out: whoever pulls has them.
    pub fn pull(&mut self, deadline: Instant) -> JoinHandle<Pulled> {
        let nothing = Destination::new(vec![0], layout(16));
        let mut destination = std::mem::replace(&mut self.destination, nothing);
        let (agent, connections) = (self.reader.clone(), self.system.ways.tcp.clone());
        let (address, lease) = (self.system.address().to_string(), self.lease);
        let copies = self.copies();
        tokio::spawn(async move {
            let (worker, writer) = (life(1), &mut destination.writer);
            let right = Right { worker: &worker, lease };
            let pulled = agent.pull(&connections, &address, right, &copies, writer, deadline).await;
            (pulled, destination)
        })
    }

    pub fn ways(&self) -> Ways {
        Ways { ucx: Some(self.reader.clone()), ..self.system.ways.clone() }
    }

    /// What a reader does: the best way, or the next.
    pub async fn pull_by_any_way(&mut self) -> Result<kv_transfer::Pulled, TransferError> {
        let (ways, copies, worker) = (self.ways(), self.copies(), life(1));
        let way = ways.choose(&self.system.endpoints, &worker)?;
        let (writer, deadline) = (&mut self.destination.writer, soon());
        ways.pull(&way, &worker, self.lease, &copies, writer, deadline).await
    }

    pub fn source_agent(&self) -> &Agent {
        self.system.agent.as_ref().unwrap()
    }

    pub fn finish(&self) -> Result<(), LeaseError> {
        self.system.source.leases.finish(now(), self.lease)
    }
}

pub fn soon() -> Instant {
    Instant::now() + PULL_MAX
}

pub fn strike(agent: &Agent, signal: Signal) {
    let process = Pid::from_raw(agent.process_id().unwrap() as i32).unwrap();
    kill_process(process, signal).unwrap();
}

/// Waits until the first byte of some block has come, seen through the file that the pool is.
pub async fn until_file_has_some(memory: &HostMemory) {
    let file = File::from(memory.file().unwrap().try_clone().unwrap());
    let deadline = soon();
    let has_come = |block: u32| {
        let mut byte = [0; 16];
        file.read_exact_at(&mut byte, u64::from(block) * BLOCK_BYTES as u64).unwrap();
        byte != [0; 16]
    };
    while !(0..BLOCKS).any(has_come) {
        assert!(Instant::now() < deadline, "nothing comes");
        tokio::task::yield_now().await;
    }
}

/// Waits for another agent than the first.
pub async fn until_back(agent: &Agent) {
    let lives = || agent.status().lives.load(Ordering::Relaxed);
    eventually("another agent", || lives() >= 2 && agent.process_id().is_some()).await;
}
