//! One member of the cluster through all its lives, with the proxies that others reach it by.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::Instant;

use crate::cluster::ClusterConfig;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::process::{Addresses, Process};
use crate::proxies::Proxies;
use crate::proxy::{Cut, CutGuard, Proxy};
use crate::role::{CommandLine, Role};

/// A question about a process' health or figures is answered within this time, or not.
const ADMIN_DEADLINE: Duration = Duration::from_secs(2);

/// NATS listens this long after its start at the latest.
const NATS_DEADLINE: Duration = Duration::from_secs(20);

/// A member of the cluster. All but NATS reach NATS through a proxy of their own; workers' data and
/// KV listeners are reached through proxies too.
pub struct Component {
    /// What it is for.
    pub role: Role,
    /// Unique, and the same in each life.
    pub name: String,
    command_line: CommandLine,
    logs: PathBuf,
    journal: Arc<Journal>,
    proxies: Proxies,
    nats_address: SocketAddr,
    life: AtomicU64,
    running: Mutex<Option<Running>>,
}

struct Running {
    process: Process,
    addresses: Addresses,
}

impl Component {
    /// Prepares a member; `before` are those made already, NATS first. Errors: no free port.
    pub async fn new(
        role: Role,
        index: usize,
        config: &ClusterConfig,
        journal: Arc<Journal>,
        before: &[Arc<Self>],
    ) -> Result<Self> {
        let nats_address = match before.first() {
            Some(nats) => nats.nats_address,
            None => free_address()?,
        };
        let proxies = Proxies::start(role, config, nats_address).await?;
        let name = format!("{}-{index}", role.command());
        let command_line = role.command_line(&name, config, &proxies, nats_address);
        Ok(Self {
            role,
            name,
            command_line,
            logs: config.logs.clone(),
            journal,
            proxies,
            nats_address,
            life: AtomicU64::new(0),
            running: Mutex::new(None),
        })
    }

    /// Begins a life and waits until it can be reached. Errors: it does not come up.
    pub async fn start(&self) -> Result<()> {
        let mut command = Command::new(&self.command_line.program);
        command.args(&self.command_line.arguments).env("STATOR_LOG", "info");
        let mut process = Process::start(&self.name, command, &self.logs, &self.journal)?;
        let addresses = process.addresses(self.role.addresses()).await?;
        if self.role == Role::Nats {
            nats_answers(self.nats_address).await?;
        }
        for (proxy, key) in [(&self.proxies.data, "data"), (&self.proxies.kv, "kv")] {
            if let (Some(proxy), Some(address)) = (proxy, addresses.get(key)) {
                proxy.forward_to(*address);
            }
        }
        self.life.fetch_add(1, Ordering::Relaxed);
        *self.running.lock() = Some(Running { process, addresses });
        Ok(())
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(running) = &*self.running.lock() {
            running.process.signal(signal);
        }
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&self) -> Result<()> {
        let running = self.running.lock().take();
        match running {
            Some(running) => running.process.kill().await,
            None => Ok(()),
        }
    }

    /// SIGTERM, and waits for the end. Errors: it ends with another code than 0, or not.
    pub async fn terminate(&self) -> Result<()> {
        let running = self.running.lock().take();
        match running {
            Some(running) => running.process.terminate().await,
            None => Ok(()),
        }
    }

    /// Cuts it off from everyone who reaches it through a proxy, and from NATS.
    pub fn cut_off(&self, cut: Cut) -> Vec<CutGuard> {
        let Proxies { nats, data, kv } = &self.proxies;
        [nats, data, kv].into_iter().flatten().map(|proxy| proxy.cut(cut)).collect()
    }

    /// Cuts it off from NATS alone.
    pub fn cut_nats(&self, cut: Cut) -> Option<CutGuard> {
        self.proxies.nats.as_ref().map(|proxy| proxy.cut(cut))
    }

    /// Cuts off those who read KV blocks from it.
    pub fn cut_kv(&self, cut: Cut) -> Option<CutGuard> {
        self.proxies.kv.as_ref().map(|proxy| proxy.cut(cut))
    }

    /// Whether someone is reading KV blocks from it at this moment.
    pub fn is_pulled_from(&self) -> bool {
        self.proxies.kv.as_ref().is_some_and(Proxy::is_carrying)
    }

    /// The ends of the connections on which someone does.
    pub fn readers(&self) -> Vec<SocketAddr> {
        self.proxies.kv.as_ref().map(Proxy::carrying_to).unwrap_or_default()
    }

    /// Whether one of these connections is its own.
    pub fn has_any(&self, own_ends: &[SocketAddr]) -> bool {
        let running = self.running.lock();
        running.as_ref().is_some_and(|running| running.process.has_any(own_ends))
    }

    /// Which life this is, from 1, and the memory it has, in bytes.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let bytes = self.running.lock().as_ref()?.process.resident_bytes()?;
        Some((self.life.load(Ordering::Relaxed), bytes))
    }

    /// Errors: it has ended although nobody ended it.
    pub fn check_alive(&self) -> Result<()> {
        let mut running = self.running.lock();
        let running = running.as_mut().with_context(|| format!("{} is not running", self.name))?;
        match running.process.ended() {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself with {status}", self.name),
        }
    }

    /// An address that it printed. Errors: it is not running.
    pub fn address(&self, key: &str) -> Result<SocketAddr> {
        let running = self.running.lock();
        let address = running.as_ref().and_then(|running| running.addresses.get(key).copied());
        address.with_context(|| format!("{} has no address {key}", self.name))
    }

    /// Whether it says that it is ready; a gateway also when it serves a model.
    pub async fn is_ready(&self, http: &reqwest::Client) -> bool {
        match self.role {
            Role::Nats => nats_answers(self.nats_address).await.is_ok(),
            Role::Gateway => {
                let models = self.get(http, "v1/models").await;
                let serves = models.is_ok_and(|models| models.contains("\"id\""));
                serves && self.get(http, "health/ready").await.is_ok()
            }
            _ => self.get(http, "health/ready").await.is_ok(),
        }
    }

    /// Its figures. Errors: it does not answer.
    pub async fn metrics(&self, http: &reqwest::Client) -> Result<Metrics> {
        self.get(http, "metrics").await.map(Metrics::new)
    }

    async fn get(&self, http: &reqwest::Client, path: &str) -> Result<String> {
        let address = self.address(if self.role == Role::Gateway { "API" } else { "admin" })?;
        let url = format!("http://{address}/{path}");
        let asked = http.get(&url).timeout(ADMIN_DEADLINE).send();
        let answered = asked.await.with_context(|| format!("{} does not answer", self.name))?;
        let answered = answered.error_for_status().with_context(|| self.name.clone())?;
        answered.text().await.with_context(|| format!("{} does not answer", self.name))
    }
}

/// Waits until a NATS server greets.
async fn nats_answers(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + NATS_DEADLINE;
    while !nats_greets(address).await {
        if Instant::now() > deadline {
            return Err(anyhow!("NATS does not answer on {address} after {NATS_DEADLINE:?}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn nats_greets(address: SocketAddr) -> bool {
    let greeting = async {
        let mut first = [0; 4];
        TcpStream::connect(address).await?.read_exact(&mut first).await?;
        Ok::<_, std::io::Error>(first == *b"INFO")
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), greeting).await, Ok(Ok(true)))
}

fn free_address() -> Result<SocketAddr> {
    // Free now; the kernel does not give it to others soon, and nats-server may take it again.
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?)
}
