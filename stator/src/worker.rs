//! `stator prefill-worker` and `stator decode-worker`: an engine and its place in a cluster.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use engine::EngineConfig;
use kv_transfer::{
    LeaseLimits, LeaseTable, LocalPools, TCP, TransferError, TransferFaults, UCX, Ways,
};
use messaging::{DataPlane, Network, TcpOptions, advertised_host};
use prefill_worker::{KvListener, KvSource};
use protocol::v1::Role;
use protocol::{Incarnation, WorkerLife};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use worker::{EngineHost, EnginePlace, Presence, Worker, WorkerConfig, WorkerError};

use crate::cli::{ComponentArgs, DataArgs, TestDefect, WorkerArgs};
use crate::error::CommandError;
use crate::hardware::Hardware;
use crate::model_directory::{self, ModelDirectory};
use crate::signals::Signals;
use crate::{addresses, cluster, engines, kv_source, observe, summary, ucx};

/// How often a draining worker is looked at.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);

/// A worker that had nothing to do for this long has nothing left: what was given to it before others
/// knew that it drains has come by then, and its last tokens have gone out.
const QUIET: Duration = Duration::from_millis(300);

/// What is checked and bound before anything is started.
struct Prepared {
    name: String,
    model: ModelDirectory,
    data_plane: DataPlane,
    ways: Ways,
    /// Of a prefill worker.
    kv: Option<KvListener>,
    ucx: ucx::Plan,
    admin: TcpListener,
}

/// A worker that serves.
struct Running {
    /// What it says once it is registered, but for where its data plane listens.
    title: String,
    summary: String,
    network: Network,
    host: Arc<EngineHost>,
    presence: Arc<Presence>,
    leases: Arc<LeaseTable>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), WorkerError>>,
}

/// Runs a worker until a signal ends it, then lets what it has end.
pub async fn command(role: Role, arguments: WorkerArgs) -> Result<(), CommandError> {
    let mut signals = Signals::listen()?;
    let starting = async {
        let prepared = prepare(role, &arguments).await?;
        start(role, &arguments, prepared).await
    };
    let mut running = tokio::select! {
        started = starting => started?,
        () = signals.next() => return Ok(()),
    };
    let presence = running.presence.clone();
    tokio::select! {
        ended = &mut running.task => return Err(failed(ended)),
        data = presence.registered() => running.print_ready(&data),
        () = signals.next() => return running.end().await,
    }
    tokio::select! {
        ended = &mut running.task => return Err(failed(ended)),
        () = signals.next() => {}
    }
    cluster::end_at_next(signals);
    running.drain(Duration::from_secs(arguments.component.drain_timeout)).await;
    running.end().await
}

fn failed(ended: Result<Result<(), WorkerError>, JoinError>) -> CommandError {
    CommandError::of_worker("the worker", ended)
}

fn short_name(role: Role) -> &'static str {
    if role == Role::Prefill { "prefill" } else { "decode" }
}

async fn prepare(role: Role, arguments: &WorkerArgs) -> Result<Prepared, CommandError> {
    let name = cluster::name(arguments.component.name.as_deref(), short_name(role))?;
    let data_plane = data_plane(arguments).await?;
    engines::check(&arguments.engine).map_err(CommandError::Arguments)?;
    let model = model_directory::named(arguments.model.as_deref(), arguments.model_name.as_deref())
        .map_err(CommandError::Arguments)?;
    let (local, tcp) = (Arc::new(pools(arguments)), kv_source::connections(&data_plane));
    let ways = Ways { local, tcp, ..Ways::default() };
    let ucx = ucx::check(arguments)?;
    let kv = match role {
        Role::Prefill => Some(kv_listener(arguments, &ways, &data_plane).await?),
        _ => None,
    };
    let admin = observe::bind(&arguments.admin, arguments.component.insecure).await?;
    Ok(Prepared { name, model, data_plane, ways, kv, ucx, admin })
}

async fn start(
    role: Role,
    arguments: &WorkerArgs,
    prepared: Prepared,
) -> Result<Running, CommandError> {
    let Prepared { name, model, data_plane, mut ways, kv, ucx, admin } = prepared;
    let ComponentArgs { nats, login, .. } = &arguments.component;
    let network = cluster::join(nats, login, &name, data_plane).await?;
    let (engines, card) = engines::load(model, arguments.engine.clone()).await?;
    let machine = Hardware::find().await?;

    let title = format!("{}-worker {name} ready, serving {}", short_name(role), card.name);
    let life = WorkerLife { id: name.as_str().into(), incarnation: Incarnation::begin() };
    let (runner, place) = (engines.runner(), EnginePlace::Thread);
    let sizes = engines::sizes(&arguments.engine, runner.as_ref(), 0)?;
    let engine = EngineConfig { shares_memory: ucx.is_start(), ..sizes };
    let own_ways = if ucx.is_start() { &[UCX, TCP][..] } else { &[TCP] };
    let kv_ways = [engines.kv_ways(), own_ways].concat();
    let hardware = Some(machine.registration(&engines.device()?, &kv_ways));
    let mut worker =
        Worker::start(WorkerConfig { life, role, runner, place, engine, card, hardware })?;
    let (host, presence) = (worker.host.clone(), worker.presence.clone());
    let transfers = worker.transfers.clone();
    let ucx = ucx.start(host.memory()).await?;
    if ucx.agent.is_none() {
        worker.lose_way(UCX);
    }
    ways.ucx = ucx.agent;
    let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
    let mut summary = summary::lines(&engines, &[&host]) + &ucx.line;
    if let Some(kv) = &kv {
        summary += &format!("  kv    {}\n", kv.server.local_address()?);
    }
    let hosts = std::slice::from_ref(&host);
    let metrics = observe::workers(&network, hosts, &leases, &transfers, &machine);
    if let Some(agent) = &ways.ucx {
        observe::ucx(&metrics, agent);
    }
    let registered = presence.clone();
    let admin = observe::serve(admin, &metrics, move || registered.is_ready())?;
    summary += &format!("  admin http://{admin}\n");
    let stop = CancellationToken::new();
    let (joined, stopping) = (network.clone(), stop.clone());
    let task = match role {
        Role::Prefill => {
            let kv = KvSource { leases: leases.clone(), listener: kv };
            tokio::spawn(prefill_worker::run(worker, kv, joined, ways, stopping))
        }
        _ => tokio::spawn(decode_worker::run(worker, joined, ways, stopping)),
    };
    Ok(Running { title, summary, network, host, presence, leases, stop, task })
}

/// Checks the addresses before anything is opened.
async fn data_plane(arguments: &WorkerArgs) -> Result<DataPlane, CommandError> {
    let DataArgs { data_listen, advertise, tls, .. } = &arguments.data;
    let protection = cluster::protection(&arguments.component, tls);
    addresses::check("--data-listen", *data_listen, protection, addresses::OPEN_DATA)?;
    addresses::check_advertised("--data-listen", *data_listen, advertise.as_deref()).await?;
    if tls.tls_ca.is_some() && tls.tls_cert.is_none() {
        return Err(CommandError::Arguments(
            "--tls-ca alone is not enough for a worker, which others connect to; add --tls-cert \
             and --tls-key"
                .into(),
        ));
    }
    let (listen, advertise) = (*data_listen, advertise.clone());
    Ok(DataPlane::tcp(TcpOptions { listen, advertise, tls: cluster::tls_files(tls) })?)
}

/// The pools that others read, as they should be read.
fn pools(arguments: &WorkerArgs) -> LocalPools {
    match arguments.component.test_defect {
        Some(TestDefect::CorruptBlock) => LocalPools::with_faults(Box::new(CorruptBlock)),
        _ => LocalPools::default(),
    }
}

/// See `TestDefect`.
struct CorruptBlock;

impl TransferFaults for CorruptBlock {
    fn before_read(&self, _worker: &WorkerLife) -> Result<(), TransferError> {
        Ok(())
    }

    fn in_transit(&self, block: &mut [u8]) {
        block[0] ^= 1;
    }
}

/// Listens for readers of KV blocks; before the engine begins, so that a taken port is known early.
async fn kv_listener(
    arguments: &WorkerArgs,
    ways: &Ways,
    data_plane: &DataPlane,
) -> Result<KvListener, CommandError> {
    let DataArgs { advertise, advertise_kv, .. } = &arguments.data;
    let listen = kv_source::check(arguments)?;
    let advertise = advertise_kv.as_deref().or(advertise.as_deref().map(advertised_host));
    kv_source::listen(listen, advertise, ways, data_plane).await
}

impl Running {
    /// A closed standard output is no reason to stop.
    fn print_ready(&self, data: &str) {
        let text = format!("{}\n  data  {data}\n{}", self.title, self.summary);
        let _closed = std::io::stdout().write_all(text.as_bytes());
    }

    /// Takes nothing new, and waits until what it has is done, at most for `timeout`.
    async fn drain(&self, timeout: Duration) {
        self.presence.drain();
        let done = async {
            let mut quiet = Duration::ZERO;
            while quiet < QUIET {
                tokio::time::sleep(DRAIN_INTERVAL).await;
                quiet = if self.is_idle() { quiet + DRAIN_INTERVAL } else { Duration::ZERO };
            }
        };
        if tokio::time::timeout(timeout, done).await.is_err() {
            tracing::warn!("the drain timeout is over: other workers go on with what is left");
        }
    }

    /// Cuts what is left and takes the registry entry away.
    async fn end(self) -> Result<(), CommandError> {
        self.stop.cancel();
        let ended = self.task.await;
        cluster::leave(&self.network).await;
        match ended {
            Ok(Ok(())) => Ok(()),
            ended => Err(failed(ended)),
        }
    }

    fn is_idle(&self) -> bool {
        let load = self.host.load();
        load.running == 0 && load.waiting == 0 && self.leases.is_empty()
    }
}
