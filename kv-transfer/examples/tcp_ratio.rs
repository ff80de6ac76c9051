//! Measures pulls over tcp against a bare socket and against the local way, interleaved in one run,
//! and prints the ratios: `cargo run --release -p kv-transfer --example tcp_ratio [rounds]`.

use std::io::Error;
use std::sync::Arc;
use std::time::Duration;

use kv_transfer::{
    BlockCopy, BlockWriter, HostMemory, KvLayout, LeaseLimits, LeaseTable, LocalPools, LocalSource,
    Way, Ways, tcp,
};
use protocol::WorkerLife;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const BYTES: usize = 64 << 20;

/// What the bare socket is given and asked for at once: what it is fastest with.
const BARE_BYTES: usize = 256 << 10;

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

struct Pull {
    ways: [(Way, Ways); 2],
    worker: WorkerLife,
    source: Arc<LocalSource>,
    copies: Vec<BlockCopy>,
    writer: BlockWriter,
}

impl Pull {
    async fn new(block_bytes: usize, scattered: bool) -> anyhow::Result<Self> {
        let (blocks, layout) = (BYTES / block_bytes, layout(block_bytes));
        let memory = || HostMemory::new(blocks, layout.block_bytes()).map(Arc::new);
        let (from, to) = (memory()?, memory()?);
        for block in 0..blocks as u32 {
            // SAFETY: nobody else has this memory yet.
            unsafe { from.write(block, 0, block_bytes) }.fill(block as u8);
        }
        let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
        let source = Arc::new(LocalSource { layout: layout.clone(), memory: from.into(), leases });
        let pools = Arc::new(LocalPools::default());
        let worker = WorkerLife::new("bench", 1);
        pools.add(worker.clone(), &source);
        let limits = tcp::ServerLimits::default();
        let server = tcp::Server::bind("127.0.0.1:0", pools.clone(), limits).await?;
        let address = server.local_address()?.to_string();
        tokio::spawn(server.run());
        let copies = places(blocks, scattered).into_iter().enumerate();
        let copies = copies.map(|(destination, source)| BlockCopy { source, destination });
        let copies = copies.collect();
        // SAFETY: this program alone uses the memory.
        let writer = unsafe { BlockWriter::new(to, layout, (0..blocks as u32).collect()) };
        let local = Ways { local: pools, ..Ways::default() };
        let ways = [(Way::Tcp(address), Ways::default()), (Way::Local, local)];
        Ok(Self { ways, worker, source, copies, writer })
    }

    async fn run(&mut self, way: usize) -> anyhow::Result<Duration> {
        let lease = self.source.leases.grant(std::time::Instant::now(), Arc::new(()))?;
        let blocks: Vec<u32> = self.copies.iter().map(|copy| copy.source).collect();
        self.source.leases.announce(lease.id, &blocks);
        let began = Instant::now();
        let (way, ways) = &self.ways[way];
        let deadline = began + Duration::from_secs(30);
        ways.pull(way, &self.worker, lease, &self.copies, &mut self.writer, deadline).await?;
        let took = began.elapsed();
        self.source.leases.finish(std::time::Instant::now(), lease)?;
        Ok(took)
    }
}

/// A bare connection whose other end sends `BYTES` for each byte it receives.
async fn bare_sender() -> anyhow::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let from = vec![1u8; BYTES];
        loop {
            stream.read_u8().await?;
            for part in from.chunks(BARE_BYTES) {
                stream.write_all(part).await?;
            }
        }
        #[allow(unreachable_code)]
        Ok::<(), Error>(())
    });
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn receive_bare(stream: &mut TcpStream, to: &mut [u8]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    stream.write_u8(1).await?;
    for part in to.chunks_mut(BARE_BYTES) {
        stream.read_exact(part).await?;
    }
    Ok(began.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

async fn measure(block_bytes: usize, scattered: bool, rounds: usize) -> anyhow::Result<()> {
    let mut pull = Pull::new(block_bytes, scattered).await?;
    let mut bare = bare_sender().await?;
    let mut to = vec![0; BYTES];
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..=rounds {
        let took =
            [receive_bare(&mut bare, &mut to).await?, pull.run(0).await?, pull.run(1).await?];
        if round > 0 {
            times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
        }
    }
    let rates = times.map(|times| BYTES as f64 / 1e9 / median(times).as_secs_f64());
    let [socket, tcp, local] = rates;
    println!(
        "{:>5} KiB {} | {socket:5.2} | {tcp:5.2} | {local:5.2} | {:3.0} % | {:3.0} %",
        block_bytes >> 10,
        if scattered { "scattered" } else { "in order " },
        100.0 * tcp / socket,
        100.0 * tcp / local,
    );
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(21), |rounds| rounds.parse())?;
    println!("64 MiB, medians of {rounds} interleaved rounds, GB/s");
    println!("blocks              | bare socket | tcp | local | tcp/socket | tcp/local");
    for block_bytes in [64 << 10, 256 << 10, 1 << 20] {
        for scattered in [false, true] {
            measure(block_bytes, scattered, rounds).await?;
        }
    }
    Ok(())
}
