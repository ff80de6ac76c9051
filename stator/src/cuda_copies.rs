//! Measures how blocks come from one GPU pool into another, checks every byte, and prints a table.
//!
//! The first row, one copy within a GPU, is what the others are held against. Where a machine has one
//! GPU, the rows for two are left out and named.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kv_transfer::cuda::{CudaError, CudaMemory, Device, Driver, Function};
use kv_transfer::{
    BlockCopy, BlockWriter, Capability, KvLayout, Lease, LeaseId, LeaseLimits, LeaseTable,
    LocalPools, LocalSource, Way, Ways, tcp,
};
use protocol::WorkerLife;
use tokio::time::Instant;

use crate::cli::CopiesArgs;
use crate::error::CommandError;

/// The name of this command.
const COMMAND: &str = "cuda-copies";

const MINUTES: Duration = Duration::from_secs(600);

#[derive(Clone, Copy)]
struct Shape {
    block_bytes: usize,
    blocks: usize,
}

impl Shape {
    fn layout(self) -> KvLayout {
        let (numerics_id, head_dim) = ("bench".to_string(), self.block_bytes / 128);
        KvLayout { numerics_id, block_size: 16, layers: 1, kv_heads: 2, head_dim, element_bytes: 2 }
    }

    /// How source blocks lie: all in order, or no two neighbours together.
    fn order(self, is_scattered: bool) -> Vec<u32> {
        let (even, odd) = ((0..self.blocks).step_by(2), (1..self.blocks).step_by(2));
        let order: Vec<usize> =
            if is_scattered { even.chain(odd).collect() } else { (0..self.blocks).collect() };
        order.into_iter().map(|block| block as u32).collect()
    }
}

fn worker() -> WorkerLife {
    WorkerLife::new("bench", 1)
}

/// What a block holds: words that differ within it and from block to block.
fn content(block: u32, bytes: usize) -> Vec<u8> {
    let word = |index: u32| block.wrapping_mul(0x9E37_79B9) ^ index.wrapping_mul(0x85EB_CA6B);
    (0..bytes as u32 / 4).flat_map(|index| word(index).to_le_bytes()).collect()
}

fn pool(device: &Arc<Device>, shape: Shape) -> anyhow::Result<CudaMemory> {
    match CudaMemory::new(device, shape.blocks, shape.block_bytes) {
        Err(CudaError::PoolTooLarge { ordinal, .. }) => {
            bail!("GPU {ordinal} has no room for three pools of this size; use a smaller --mib")
        }
        memory => Ok(memory?),
    }
}

/// A pool whose blocks hold their content, and a lease over all of it.
fn source(device: &Arc<Device>, shape: Shape) -> anyhow::Result<(Arc<LocalSource>, Lease)> {
    let memory = pool(device, shape)?;
    for block in 0..shape.blocks as u32 {
        // SAFETY: nobody else has this memory yet.
        unsafe { memory.write_blocks(block, &content(block, shape.block_bytes)) }?;
    }
    let limits = LeaseLimits { duration: MINUTES, ..LeaseLimits::default() };
    let leases = Arc::new(LeaseTable::new(limits));
    let lease = leases.grant(std::time::Instant::now(), Arc::new(()))?;
    leases.announce(lease.id, &shape.order(false));
    let source = LocalSource { layout: shape.layout(), memory: Arc::new(memory).into(), leases };
    Ok((Arc::new(source), lease))
}

/// Serves a pool until its input ends.
async fn be_source(shape: Shape, ordinal: u32) -> anyhow::Result<()> {
    let device = Device::open(&Driver::load()?, ordinal)?;
    let (source, lease) = source(&device, shape)?;
    let pools = Arc::new(LocalPools::default());
    pools.add(worker(), &source);
    let server = tcp::Server::bind("127.0.0.1:0", pools, tcp::ServerLimits::default()).await?;
    let capability = u128::from_be_bytes(lease.capability.to_bytes());
    println!("{} {} {capability}", server.local_address()?, lease.id.0);
    tokio::spawn(server.run());
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop)).await?;
    Ok(())
}

/// The other process, its address, and what allows to read its pool.
struct Other {
    process: Child,
    address: String,
    lease: Lease,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Other {
    fn start(shape: Shape, ordinal: u32) -> anyhow::Result<Self> {
        let [ordinal, block_bytes, blocks] =
            [ordinal as usize, shape.block_bytes, shape.blocks].map(|number| number.to_string());
        let mut process = Command::new(std::env::current_exe()?)
            .args([COMMAND, "--ordinal", &ordinal, "--source", &block_bytes, &blocks])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = process.stdout.take().context("its output is piped")?;
        BufReader::new(output).read_line(&mut line)?;
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [address, lease, capability] = parts[..] else {
            let _gone = process.kill();
            bail!("the other process has no pool; it said why above");
        };
        let capability = capability.parse::<u128>()?.to_be_bytes();
        let capability = Capability::from_bytes(&capability).context("a capability")?;
        let lease = Lease { id: LeaseId(lease.parse()?), capability };
        Ok(Self { process, address: address.to_string(), lease })
    }
}

/// A GPU that blocks come to.
struct Gpu {
    device: Arc<Device>,
    /// What copies many small ones, as workers have it.
    copier: Option<Function>,
}

impl Gpu {
    fn new(device: Arc<Device>) -> Self {
        let compiled = engine::copy_kernel(&device);
        if let Err(why_not) = &compiled {
            println!("small blocks are copied one by one: {why_not}");
        }
        Self { device, copier: compiled.ok() }
    }
}

/// A pull that is repeated.
struct Pull<'a> {
    what: &'a str,
    ways: &'a Ways,
    way: Way,
    lease: Lease,
    to: &'a Gpu,
    shape: Shape,
    is_scattered: bool,
}

impl<'a> Pull<'a> {
    fn new(
        what: &'a str,
        ways: &'a Ways,
        way: Way,
        lease: Lease,
        to: &'a Gpu,
        (shape, is_scattered): (Shape, bool),
    ) -> Self {
        Self { what, ways, way, lease, to, shape, is_scattered }
    }

    /// Pulls so often, checks all bytes of the first time, and prints the median. GB/s.
    async fn measure(&self, rounds: usize, best: Option<f64>) -> anyhow::Result<f64> {
        let Shape { block_bytes, blocks } = self.shape;
        let memory = pool(&self.to.device, self.shape)?;
        let memory = Arc::new(memory.copied_by(self.to.copier.clone()));
        let places = (0..blocks as u32).collect();
        // SAFETY: this program alone uses the memory.
        let mut writer = unsafe { BlockWriter::new(memory.clone(), self.shape.layout(), places) };
        let order = self.shape.order(self.is_scattered);
        let copy =
            |(destination, source): (usize, &u32)| BlockCopy { source: *source, destination };
        let copies: Vec<BlockCopy> = order.iter().enumerate().map(copy).collect();
        let mut times = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let began = Instant::now();
            let (way, deadline) = (&self.way, began + MINUTES);
            self.ways.pull(way, &worker(), self.lease, &copies, &mut writer, deadline).await?;
            times.push(began.elapsed());
            if round == 0 {
                times.clear();
                for (place, block) in order.iter().enumerate() {
                    // SAFETY: no pull is under way.
                    let found = unsafe { memory.read_blocks(place as u32, 1) }?;
                    ensure!(found == content(*block, block_bytes), "block {block} is wrong");
                }
            }
        }
        times.sort();
        let seconds = times[times.len() / 2].as_secs_f64();
        let rate = (blocks * block_bytes) as f64 / 1e9 / seconds;
        println!(
            "{:30} | {:>5} KiB {} | {rate:8.2} | {:4.2}",
            self.what,
            block_bytes >> 10,
            if self.is_scattered { "scattered" } else { "in order " },
            rate / best.unwrap_or(rate),
        );
        Ok(rate)
    }
}

/// Measures, or is the other process. Errors: a byte was wrong, or a GPU did not do it.
pub async fn command(arguments: CopiesArgs) -> Result<(), CommandError> {
    let CopiesArgs { mib, rounds, ordinal, source } = arguments;
    let ended = match source[..] {
        [block_bytes, blocks] => be_source(Shape { block_bytes, blocks }, ordinal).await,
        _ => measure((mib as usize) << 20, rounds as usize, ordinal).await,
    };
    ended.map_err(|error| CommandError::Unavailable(format!("{error:#}")))
}

async fn measure(bytes: usize, rounds: usize, ordinal: u32) -> anyhow::Result<()> {
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let another = if ordinal == 0 { 1 } else { 0 };
    let first = Gpu::new(Device::open(&driver, ordinal)?);
    let second = Device::open(&driver, another).ok().map(Gpu::new);
    println!(
        "CUDA {:?}, {devices} GPUs, {} MiB, medians of {rounds}",
        driver.version()?,
        bytes >> 20
    );
    println!("{:30} | blocks              |     GB/s | of the first", "from pool to pool");
    let mut best = None;
    for (block_bytes, is_scattered) in
        [(2 << 20, false), (2 << 20, true), (128 << 10, false), (128 << 10, true)]
    {
        let shape = Shape { block_bytes, blocks: bytes / block_bytes };
        let order = (shape, is_scattered);
        let (here, lease) = source(&first.device, shape)?;
        let local = Ways::default();
        local.local.add(worker(), &here);
        let rate = Pull::new("one GPU", &local, Way::Local, lease, &first, order)
            .measure(rounds, best)
            .await?;
        best = best.or(Some(rate));
        if let Some(second) = &second {
            let two =
                Pull::new("two GPUs of this process", &local, Way::Local, lease, second, order);
            two.measure(rounds, best).await?;
        }
        drop((here, local));
        let other = Other::start(shape, ordinal)?;
        let ways = Ways::default();
        let (cuda, tcp) = (Way::Cuda(other.address.clone()), Way::Tcp(other.address.clone()));
        let ipc =
            Pull::new("two processes, one GPU", &ways, cuda.clone(), other.lease, &first, order);
        ipc.measure(rounds, best).await?;
        ensure!(ways.cuda.mappings() == 1, "the pool was not mapped: these were bytes over tcp");
        if let Some(second) = &second {
            let ways = Ways::default();
            let ipc = Pull::new("two processes, two GPUs", &ways, cuda, other.lease, second, order);
            ipc.measure(rounds, best).await?;
            ensure!(
                ways.cuda.mappings() == 1,
                "the pool was not mapped: these were bytes over tcp"
            );
        }
        let staged =
            Pull::new("by way of the host, over tcp", &ways, tcp, other.lease, &first, order);
        staged.measure(rounds, best).await?;
    }
    if second.is_none() {
        println!("not measured: copies between two GPUs, of which there is one here");
    }
    Ok(())
}
