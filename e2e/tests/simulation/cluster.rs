//! A gateway, a router and workers, all in one process and under one clock.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gateway::{Gateway, GatewayConfig};
use kv_transfer::{LeaseLimits, LeaseTable, LocalPools, Ways};
use messaging::Network;
use parking_lot::Mutex;
use prefill_worker::KvSource;
use protocol::v1::Role;
use protocol::{Incarnation, WorkerLife};
use router::{Router, RouterIdentity};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::{EngineHost, EnginePlace, Worker, WorkerConfig, WorkerError};

use crate::model::{self, Oracle};
use crate::plan::{Plan, WorkerPlan};
use crate::world::World;

const START_DEADLINE: Duration = Duration::from_secs(10);

/// Longer than the longest wait there is: a silent peer is given up after a minute.
const REST_DEADLINE: Duration = Duration::from_secs(120);

/// Load reports say what was lost; then snapshots are fetched.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);

/// See the module's description.
pub struct Cluster {
    pub app: axum::Router,
    pub oracle: Arc<Oracle>,
    world: World,
    network: Network,
    ways: Ways,
    router: Arc<Mutex<router::Core>>,
    plans: Vec<WorkerPlan>,
    running: Vec<Option<Running>>,
    lives: u64,
    dead: Vec<(WorkerLife, Weak<EngineHost>)>,
}

struct Running {
    life: WorkerLife,
    host: Arc<EngineHost>,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Cluster {
    /// Starts everything, and waits until all workers are known.
    pub async fn start(plan: &Plan, world: &World) -> Self {
        let network = Network::with_faults(Arc::new(world.clone()));
        let identity = RouterIdentity { id: "r0".into(), incarnation: Incarnation(1) };
        let router = Router::new(network.clone(), identity);
        let core = router.core();
        tokio::spawn(router.run(CancellationToken::new()));
        let gateway = Arc::new(Gateway::new(GatewayConfig::default(), network.clone()));
        let following = gateway.clone();
        tokio::spawn(async move { following.follow_workers().await });
        let mut cluster = Self {
            app: gateway.app(),
            oracle: Oracle::new(),
            world: world.clone(),
            network,
            ways: Ways {
                local: Arc::new(LocalPools::with_faults(Box::new(world.clone()))),
                ..Default::default()
            },
            router: core,
            plans: plan.workers.clone(),
            running: Vec::new(),
            lives: 0,
            dead: Vec::new(),
        };
        for worker in 0..cluster.plans.len() {
            let running = cluster.start_worker(worker);
            cluster.running.push(Some(running));
        }
        let known = gateway.has_workers(cluster.plans.len());
        tokio::time::timeout(START_DEADLINE, known).await.expect("all workers become known");
        cluster
    }

    fn start_worker(&mut self, worker: usize) -> Running {
        let WorkerPlan { is_prefill, sizes, times } = self.plans[worker];
        self.lives += 1;
        let life = WorkerLife {
            id: format!("w{worker}").as_str().into(),
            incarnation: Incarnation(self.lives),
        };
        let config = WorkerConfig {
            life: life.clone(),
            role: if is_prefill { Role::Prefill } else { Role::Decode },
            runner: model::runner(times),
            place: EnginePlace::Task,
            engine: sizes,
            card: model::card(),
            hardware: None,
        };
        let worker = Worker::start(config).unwrap();
        let host = worker.host.clone();
        let (network, ways) = (self.network.clone(), self.ways.clone());
        let never = CancellationToken::new();
        let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
        let task = match is_prefill {
            true => tokio::spawn(prefill_worker::run(
                worker,
                KvSource { leases, listener: None },
                network,
                ways,
                never,
            )),
            false => tokio::spawn(decode_worker::run(worker, network, ways, never)),
        };
        Running { life, host, task }
    }

    /// Breaks a worker's connections.
    pub fn cut(&self, worker: usize) {
        if let Some(Running { life, .. }) = &self.running[worker] {
            self.world.cut(&format!("{}/{}", life.id, life.incarnation.0));
        }
    }

    /// Ends a worker in the middle of whatever it does.
    pub fn kill(&mut self, worker: usize) {
        self.cut(worker);
        if let Some(Running { life, host, task }) = self.running[worker].take() {
            task.abort();
            self.dead.push((life, Arc::downgrade(&host)));
        }
    }

    /// Starts another life of a killed worker.
    pub fn restart(&mut self, worker: usize) {
        assert!(self.running[worker].is_none(), "it was killed before");
        self.running[worker] = Some(self.start_worker(worker));
    }

    /// Checks that nothing is left behind once all requests have ended.
    pub async fn check_rest(&self) -> Result<(), String> {
        let in_time = tokio::time::timeout(REST_DEADLINE, self.rest()).await;
        in_time.map_err(|_| format!("blocks are left: {}", self.loads()))?;
        for Running { life, host, task } in self.running.iter().flatten() {
            let blocks = host.load().blocks;
            if blocks.free + blocks.cached != host.memory().blocks() {
                return Err(format!("{life:?} lost blocks: {blocks:?}"));
            }
            if task.is_finished() {
                return Err(format!("{life:?} ended by itself"));
            }
        }
        if let Some((life, _)) = self.dead.iter().find(|(_, host)| host.strong_count() > 0) {
            return Err(format!("the engine of {life:?} outlived it"));
        }
        let synced = tokio::time::timeout(SYNC_DEADLINE, self.synced()).await;
        if synced.is_err() {
            return Err(format!("the router's index is not the workers' truth: {}", self.loads()));
        }
        Ok(())
    }

    async fn rest(&self) {
        let is_at_rest = || {
            let mut hosts = self.running.iter().flatten().map(|running| &running.host);
            let gone = self.dead.iter().all(|(_, host)| host.strong_count() == 0);
            hosts.all(|host| host.load().blocks.used == 0) && gone
        };
        while !is_at_rest() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the router knows the living workers, no others, and what their caches hold.
    async fn synced(&self) {
        let living = self.running.iter().flatten().map(|running| running.life.clone());
        let living: HashSet<WorkerLife> = living.collect();
        while self.router.lock().workers().cloned().collect::<HashSet<_>>() != living {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for Running { life, host, .. } in self.running.iter().flatten() {
            loop {
                let truth = host.kv_snapshot().await.unwrap().hashes;
                let truth: HashSet<_> = truth.into_iter().collect();
                if self.router.lock().cached_blocks(life) == Some(&truth) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn loads(&self) -> String {
        let loads = self.running.iter().flatten().map(|running| {
            let known = self.router.lock().cached_blocks(&running.life).map(HashSet::len);
            format!("{:?}: {:?}, known: {known:?}", running.life, running.host.load())
        });
        loads.collect::<Vec<_>>().join("; ")
    }
}
