//! Measures pulls by UCX, over its tcp and over what it finds on one host, against our own tcp and a
//! plain copy, interleaved in one run:
//! `cargo run --release -p kv-transfer --example ucx_ratio [rounds]`, with the directory of libucp.so.0
//! in LD_LIBRARY_PATH where the system does not find it by itself.

use std::sync::Arc;
use std::time::Duration;

use kv_transfer::ucx::{Agent, Launch, run_agent};
use kv_transfer::{
    BlockCopy, BlockWriter, HostMemory, KvLayout, LeaseLimits, LeaseTable, LocalPools, LocalSource,
    Way, Ways, tcp,
};
use protocol::WorkerLife;
use tokio::time::Instant;

const BYTES: usize = 64 << 20;

/// Says to this program that it is an agent.
const AGENT: &str = "agent";

/// UCX's transports that are compared, and the devices for them.
const TRANSPORTS: [&str; 2] = ["tcp", "shm,cma,tcp,self"];

fn layout(block_bytes: usize) -> KvLayout {
    let (numerics_id, head_dim) = ("bench".to_string(), block_bytes / 128);
    KvLayout { numerics_id, block_size: 16, layers: 1, kv_heads: 2, head_dim, element_bytes: 2 }
}

/// How blocks lie in both pools: all in order, or no two neighbours together.
fn places(blocks: usize, scattered: bool) -> Vec<u32> {
    let (even, odd) = ((0..blocks).step_by(2), (1..blocks).step_by(2));
    let order = if scattered { even.chain(odd).collect() } else { (0..blocks).collect::<Vec<_>>() };
    order.into_iter().map(|block| block as u32).collect()
}

async fn agent(memory: Arc<HostMemory>, transports: &str) -> anyhow::Result<Agent> {
    let environment = vec![
        ("UCX_TLS".into(), transports.into()),
        ("UCX_NET_DEVICES".into(), "lo".into()),
        ("UCX_LOG_LEVEL".into(), "error".into()),
    ];
    let (program, arguments) = (std::env::current_exe()?, vec![AGENT.into()]);
    Ok(Agent::start(&memory.into(), Launch { program, arguments, environment }).await?)
}

/// A way to the source, and what reads by it.
struct Measured {
    way: Way,
    ways: Ways,
    source: Arc<LocalSource>,
    writer: BlockWriter,
    times: Vec<Duration>,
}

struct Pools {
    worker: WorkerLife,
    measured: Vec<Measured>,
    copies: Vec<BlockCopy>,
}

impl Pools {
    async fn new(block_bytes: usize, scattered: bool) -> anyhow::Result<Self> {
        let blocks = BYTES / block_bytes;
        let copies = places(blocks, scattered).into_iter().enumerate();
        let copies = copies.map(|(destination, source)| BlockCopy { source, destination });
        let (worker, copies) = (WorkerLife::new("bench", 1), copies.collect());
        let mut pools = Self { worker, measured: Vec::new(), copies };
        pools.add(block_bytes, None).await?;
        for transports in TRANSPORTS {
            pools.add(block_bytes, Some(transports)).await?;
        }
        Ok(pools)
    }

    /// Adds tcp and local, or ucx, each with pools of their own.
    async fn add(&mut self, block_bytes: usize, by_ucx: Option<&str>) -> anyhow::Result<()> {
        let (blocks, layout) = (BYTES / block_bytes, layout(block_bytes));
        let memory = || HostMemory::shared(blocks, block_bytes).map(Arc::new);
        let from = memory()?;
        for block in 0..blocks as u32 {
            // SAFETY: nobody else has this memory yet.
            unsafe { from.write(block, 0, block_bytes) }.fill(block as u8);
        }
        let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
        let source =
            Arc::new(LocalSource { layout: layout.clone(), memory: from.clone().into(), leases });
        let pools = Arc::new(LocalPools::default());
        pools.add(self.worker.clone(), &source);
        let limits = tcp::ServerLimits::default();
        let server = tcp::Server::bind("127.0.0.1:0", pools.clone(), limits).await?;
        let address = server.local_address()?.to_string();
        let sender = server.sender();
        tokio::spawn(server.run());
        let to = memory()?;
        let measured = |way, ways, to: &Arc<HostMemory>| Measured {
            way,
            ways,
            source: source.clone(),
            // SAFETY: this program alone uses the memory, one way at a time.
            writer: unsafe {
                BlockWriter::new(to.clone(), layout.clone(), (0..blocks as u32).collect())
            },
            times: Vec::new(),
        };
        match by_ucx {
            None => {
                let local = Ways { local: pools, ..Ways::default() };
                self.measured.push(measured(Way::Local, local, &to));
                self.measured.push(measured(Way::Tcp(address), Ways::default(), &memory()?));
            }
            Some(transports) => {
                sender.lend_by(agent(from.clone(), transports).await?);
                let ways =
                    Ways { ucx: Some(agent(to.clone(), transports).await?), ..Ways::default() };
                self.measured.push(measured(Way::Ucx(address), ways, &to));
            }
        }
        Ok(())
    }
}

impl Measured {
    async fn run(&mut self, worker: &WorkerLife, copies: &[BlockCopy]) -> anyhow::Result<()> {
        let lease = self.source.leases.grant(std::time::Instant::now(), Arc::new(()))?;
        let blocks: Vec<u32> = copies.iter().map(|copy| copy.source).collect();
        self.source.leases.announce(lease.id, &blocks);
        let began = Instant::now();
        let deadline = began + Duration::from_secs(30);
        self.ways.pull(&self.way, worker, lease, copies, &mut self.writer, deadline).await?;
        self.times.push(began.elapsed());
        self.source.leases.finish(std::time::Instant::now(), lease)?;
        if let Some(agent) = &self.ways.ucx {
            let failures = agent.status().failures.load(std::sync::atomic::Ordering::Relaxed);
            anyhow::ensure!(failures == 0, "that was not by UCX");
        }
        Ok(())
    }

    /// Of the median, without the first round.
    fn rate(&mut self) -> f64 {
        self.times.remove(0);
        self.times.sort();
        BYTES as f64 / 1e9 / self.times[self.times.len() / 2].as_secs_f64()
    }
}

async fn measure(block_bytes: usize, scattered: bool, rounds: usize) -> anyhow::Result<()> {
    let mut pools = Pools::new(block_bytes, scattered).await?;
    for _ in 0..=rounds {
        for measured in &mut pools.measured {
            measured.run(&pools.worker, &pools.copies).await?;
        }
    }
    let rates: Vec<f64> = pools.measured.iter_mut().map(Measured::rate).collect();
    let [local, tcp, ucx_tcp, ucx_host] = rates[..] else { anyhow::bail!("four ways") };
    println!(
        "{:>5} KiB {} | {local:5.2} | {tcp:5.2} | {ucx_tcp:5.2} | {ucx_host:5.2} | {:3.0} % | {:3.0} %",
        block_bytes >> 10,
        if scattered { "scattered" } else { "in order " },
        100.0 * ucx_tcp / tcp,
        100.0 * ucx_host / tcp,
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some(AGENT) {
        run_agent();
    }
    let rounds = argument.map_or(Ok(21), |rounds| rounds.parse())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime?.block_on(async {
        println!("64 MiB, medians of {rounds} interleaved rounds, GB/s");
        println!("blocks              | local | tcp | ucx tcp | ucx host | ucx tcp/tcp | host/tcp");
        for block_bytes in [64 << 10, 256 << 10, 1 << 20] {
            for scattered in [false, true] {
                measure(block_bytes, scattered, rounds).await?;
            }
        }
        Ok(())
    })
}
