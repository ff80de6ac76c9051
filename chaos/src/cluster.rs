//! The cluster under test: which processes there are, and what is said to whom through which proxy.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use crate::component::Component;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::role::Role;

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The `stator` command.
    pub stator: PathBuf,
    /// The `nats-server` command.
    pub nats_server: PathBuf,
    /// Where logs and NATS' store go.
    pub logs: PathBuf,
    /// How many of each there are.
    pub counts: Counts,
    /// The model directory.
    pub model: PathBuf,
    /// What clients call the model.
    pub model_name: String,
    /// Arguments of every worker's engine.
    pub engine: Vec<String>,
    /// Each KV connection carries at most this many bytes per second, so that moving blocks takes
    /// a time in which something can fail.
    pub kv_bytes_per_s: u64,
    /// A defect that the processes are told to have, to see that it is noticed.
    pub defect: Option<Defect>,
}

/// Processes of each kind; there is one NATS server.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// `stator gateway`
    pub gateways: usize,
    /// `stator router`
    pub routers: usize,
    /// `stator prefill-worker`
    pub prefill_workers: usize,
    /// `stator decode-worker`
    pub decode_workers: usize,
}

/// A defect that a process can be told to have; chaos must notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A gateway's migrated answers repeat a token.
    BrokenMigration,
    /// A prefill worker's blocks have a wrong byte, which their checksum covers.
    CorruptBlock,
}

/// Everything that runs.
pub struct Cluster {
    /// What happened to requests.
    pub journal: Arc<Journal>,
    /// The processes.
    pub components: Vec<Arc<Component>>,
    http: reqwest::Client,
}

/// What is still held although nobody asks anything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    /// KV blocks in use.
    pub blocks: f64,
    /// Leases on KV blocks.
    pub leases: f64,
}

/// From the end of the last request to when nothing may be held any more.
const REST_DEADLINE: Duration = Duration::from_secs(20);

/// From the healing of a fault to every process being ready.
const HEAL_DEADLINE: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

impl Cluster {
    /// Starts all processes and waits until they are ready. Errors: one is not.
    pub async fn start(config: &ClusterConfig, http: reqwest::Client) -> Result<Self> {
        std::fs::create_dir_all(&config.logs)
            .with_context(|| format!("cannot create {}", config.logs.display()))?;
        let journal = Arc::new(Journal::default());
        let mut components = Vec::new();
        for (role, count) in counts(&config.counts) {
            for index in 0..count {
                let component = Component::new(role, index, config, journal.clone(), &components);
                components.push(Arc::new(component.await?));
            }
        }
        let cluster = Self { journal, components, http };
        // NATS first: the others would only wait for it.
        for component in &cluster.components {
            component.start().await?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// The components of a role.
    pub fn of(&self, role: Role) -> Vec<Arc<Component>> {
        self.components.iter().filter(|component| component.role == role).cloned().collect()
    }

    /// `http://…/v1` of each gateway.
    pub fn base_urls(&self) -> Result<Vec<String>> {
        let gateways = self.of(Role::Gateway);
        let url = |gateway: &Arc<Component>| Ok(format!("http://{}/v1", gateway.address("API")?));
        gateways.iter().map(url).collect()
    }

    /// Whether KV blocks are on their way to a reader at this moment.
    pub fn is_pulling(&self) -> bool {
        self.components.iter().any(|component| component.is_pulled_from())
    }

    /// The readers' ends of the connections on which they are.
    pub fn readers(&self) -> Vec<SocketAddr> {
        self.components.iter().flat_map(|component| component.readers()).collect()
    }

    /// Waits until every process says that it is ready. Errors: one ended, or does not become so.
    pub async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + HEAL_DEADLINE;
        for component in &self.components {
            while !component.is_ready(&self.http).await {
                component.check_alive()?;
                if Instant::now() > deadline {
                    bail!("{} is not ready {HEAL_DEADLINE:?} later", component.name);
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Waits until no block and no lease is held, and gives what is held if that takes too long.
    /// Errors: a process does not say.
    pub async fn rest(&self) -> Result<Held> {
        let deadline = Instant::now() + REST_DEADLINE;
        loop {
            let held = self.held().await?;
            if held == Held::default() || Instant::now() > deadline {
                return Ok(held);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn held(&self) -> Result<Held> {
        let mut held = Held::default();
        for worker in self.components.iter().filter(|component| component.role.is_worker()) {
            let by_this = self.held_by(worker).await?;
            held.blocks += by_this.blocks;
            held.leases += by_this.leases;
        }
        Ok(held)
    }

    /// What a worker holds at this moment. Errors: it does not say.
    pub async fn held_by(&self, worker: &Component) -> Result<Held> {
        let metrics = worker.metrics(&self.http).await?;
        Ok(Held {
            blocks: need(&metrics, "stator_kv_blocks", "state=\"used\"", &worker.name)?,
            leases: need(&metrics, "stator_kv_leases", "", &worker.name)?,
        })
    }

    /// Ends every process at once.
    pub async fn stop(self) -> Result<()> {
        for component in &self.components {
            component.kill().await?;
        }
        Ok(())
    }
}

fn counts(counts: &Counts) -> [(Role, usize); 5] {
    [
        (Role::Nats, 1),
        (Role::Router, counts.routers),
        (Role::PrefillWorker, counts.prefill_workers),
        (Role::DecodeWorker, counts.decode_workers),
        (Role::Gateway, counts.gateways),
    ]
}

fn need(metrics: &Metrics, name: &str, label: &str, process: &str) -> Result<f64> {
    let value = metrics.sum(name, label);
    value.with_context(|| format!("the metrics of {process} have no {name} with {label}"))
}
