//! `stator serve`: every component in one process, joined by an in-process network or, with `--nats`,
//! to a cluster.

mod joining;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::{Gateway, GatewayConfig};
use kv_transfer::{LeaseLimits, LeaseTable};
use messaging::Network;
use parking_lot::Mutex;
use prefill_worker::KvSource;
use protocol::v1::{ModelCard, Role};
use protocol::{Incarnation, WorkerLife};
use router::{Router, RouterIdentity};
use telemetry::Metrics;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::{EngineHost, EnginePlace, Presence, Worker, WorkerConfig, WorkerError};

use crate::addresses::{self, Protection};
use crate::cli::{EngineKind, ServeArgs};
use crate::engines::{self, Engines};
use crate::error::CommandError;
use crate::gateway::OPEN_API;
use crate::hardware::Hardware;
use crate::signals::Signals;
use crate::{cluster, model_directory, observe, summary};
use joining::Joined;

/// One of each role.
const WORKERS: usize = 2;

/// Everything that runs.
pub struct Serving {
    /// Where the API listens.
    pub address: SocketAddr,
    /// What clients put into `model`.
    pub model_name: String,
    /// Whether the model has a chat template.
    serves_chats: bool,
    /// What it computes with, for people.
    summary: String,
    /// The engines, for whoever wants to look at them.
    pub prefill: Arc<EngineHost>,
    /// See `prefill`.
    pub decode: Arc<EngineHost>,
    /// What the router knows, likewise.
    pub router: Arc<Mutex<router::Core>>,
    gateway: Arc<Gateway>,
    stop_gateway: CancellationToken,
    stop_rest: CancellationToken,
    /// Of workers that others use too, and which therefore say that they leave.
    presences: Vec<Arc<Presence>>,
    network: Network,
    gateway_task: tokio::task::JoinHandle<()>,
    rest: JoinSet<Result<(), WorkerError>>,
}

/// Runs the command until a signal ends it.
pub async fn command(arguments: ServeArgs) -> Result<(), CommandError> {
    let mut signals = Signals::listen()?;
    let source = source_of(&arguments);
    let mut serving = tokio::select! {
        started = start(arguments) => started?,
        () = signals.next() => return Ok(()),
    };
    let gateway = serving.gateway.clone();
    tokio::select! {
        () = gateway.has_workers(WORKERS) => print_welcome(&serving, &source),
        failed = serving.failed() => return Err(failed),
        () = signals.next() => return serving.stop().await,
    }
    tokio::select! {
        () = signals.next() => {}
        failed = serving.failed() => {
            // Others are to send nothing more; clients here are to hear of it.
            serving.presences.iter().for_each(|presence| presence.drain());
            gateway.cut().await;
            return Err(failed);
        }
    }
    cluster::end_at_next(signals);
    serving.stop().await
}

/// Checks everything that can be checked, then starts everything.
pub async fn start(arguments: ServeArgs) -> Result<Serving, CommandError> {
    let protection = Protection { insecure: arguments.insecure, client_certificates: false };
    addresses::check("--listen", arguments.listen, protection, OPEN_API)?;
    let model = model_directory::named(arguments.model.as_deref(), arguments.model_name.as_deref())
        .map_err(CommandError::Arguments)?;
    engines::check(&arguments.engine).map_err(CommandError::Arguments)?;
    let data_plane = joining::data_plane(&arguments).await?;
    let (engines, card) = engines::load(model, arguments.engine.clone()).await?;
    let listener = addresses::bind("--listen", arguments.listen).await?;
    let joined = joining::join(&arguments, data_plane).await?;
    let machine = Hardware::find().await?;
    launch(&arguments, &engines, card, listener, joined, machine)
}

fn launch(
    arguments: &ServeArgs,
    engines: &Engines,
    card: ModelCard,
    listener: TcpListener,
    joined: Joined,
    machine: Hardware,
) -> Result<Serving, CommandError> {
    let Joined { network, ways, kv } = joined;
    let address = listener.local_addr()?;
    let (model_name, serves_chats) = (card.name.clone(), card.chat_template.is_some());
    let prefill = start_worker(arguments, engines, &card, Role::Prefill, &machine, 1)?;
    let decode = start_worker(arguments, engines, &card, Role::Decode, &machine, 0)?;
    let hosts = [&prefill, &decode].map(|worker| worker.host.clone());
    let transfers = decode.transfers.clone();
    let used_by_others = arguments.nats.iter().flat_map(|_| [&prefill, &decode]);
    let presences = used_by_others.map(|worker| worker.presence.clone()).collect();

    let (stop_gateway, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let mut rest = JoinSet::new();
    let id = joining::name(arguments, "router")?;
    let router =
        Router::new(network.clone(), RouterIdentity { id, incarnation: Incarnation::begin() });
    let router_core = router.core();
    let router = router.run(stop_rest.clone());
    rest.spawn(async {
        router.await;
        Ok(())
    });
    let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
    let kv = KvSource { leases: leases.clone(), listener: kv };
    rest.spawn(decode_worker::run(decode, network.clone(), ways.clone(), stop_rest.clone()));
    rest.spawn(prefill_worker::run(prefill, kv, network.clone(), ways, stop_rest.clone()));

    let metrics = observe::workers(&network, &hosts, &leases, &transfers, &machine);
    let gateway = start_gateway(arguments, &network, &metrics);
    let summary = summary::lines(engines, &hosts.each_ref().map(|host| &**host));
    let (serving_gateway, stop) = (gateway.clone(), stop_gateway.clone());
    let gateway_task = tokio::spawn(async move { serving_gateway.serve(listener, stop).await });
    let [prefill, decode] = hosts;
    Ok(Serving {
        address,
        model_name,
        serves_chats,
        summary,
        prefill,
        decode,
        router: router_core,
        gateway,
        stop_gateway,
        stop_rest,
        presences,
        network,
        gateway_task,
        rest,
    })
}

fn start_worker(
    arguments: &ServeArgs,
    engines: &Engines,
    card: &ModelCard,
    role: Role,
    machine: &Hardware,
    others: usize,
) -> Result<Worker, CommandError> {
    let role_name = if role == Role::Prefill { "prefill" } else { "decode" };
    let id = joining::name(arguments, role_name)?.as_str().into();
    let life = WorkerLife { id, incarnation: Incarnation::begin() };
    let (runner, place, card) = (engines.runner(), EnginePlace::Thread, card.clone());
    let engine = engines::sizes(&arguments.engine, runner.as_ref(), others)?;
    let ways = [engines.kv_ways(), &[kv_transfer::TCP]].concat();
    let hardware = Some(machine.registration(&engines.device()?, &ways));
    Ok(Worker::start(WorkerConfig { life, role, runner, place, engine, card, hardware })?)
}

fn start_gateway(arguments: &ServeArgs, network: &Network, metrics: &Metrics) -> Arc<Gateway> {
    let grace = Duration::from_secs(arguments.grace_period_s);
    let config = GatewayConfig { grace, ..arguments.clients.limits() };
    let gateway = Gateway::new(config, network.clone());
    let gateway = Arc::new(gateway.with_routes(telemetry::metrics_route(metrics)));
    observe::gateway(metrics, &gateway);
    gateway
}

impl Serving {
    /// Waits until the model can be asked.
    pub async fn ready(&self) {
        self.gateway.has_workers(WORKERS).await;
    }

    /// Waits until a component ends by itself, which none should.
    pub async fn failed(&mut self) -> CommandError {
        tokio::select! {
            ended = &mut self.gateway_task => CommandError::of_task("the gateway", ended),
            Some(ended) = self.rest.join_next() => CommandError::of_worker("a worker or the router", ended),
        }
    }

    /// Stops accepting, lets requests end within the grace period, then stops everything. What other
    /// gateways of a cluster still have here then goes on at other workers.
    pub async fn stop(mut self) -> Result<(), CommandError> {
        self.presences.iter().for_each(|presence| presence.drain());
        self.stop_gateway.cancel();
        let served = self.gateway_task.await;
        self.stop_rest.cancel();
        while self.rest.join_next().await.is_some() {}
        cluster::leave(&self.network).await;
        served.map_err(|error| CommandError::of_task("the gateway", Err(error)))
    }
}

/// What the model is, for people.
fn source_of(arguments: &ServeArgs) -> String {
    let model = arguments.model.as_deref().unwrap_or("the bundled demo model");
    match arguments.engine.engine {
        EngineKind::Cpu => model.to_string(),
        EngineKind::Mock => format!("a mock with the tokenizer of {model}"),
    }
}

/// Says what is served, where, and how to try it. A closed standard output is no reason to stop.
fn print_welcome(serving: &Serving, source: &str) {
    let (address, name) = (serving.address, &serving.model_name);
    let (path, asked) = match serving.serves_chats {
        true => {
            ("chat/completions", r#""messages": [{"role": "user", "content": "What is prefill?"}]"#)
        }
        false => ("completions", r#""prompt": "What is prefill?""#),
    };
    let welcome = format!(
        "serving {name} ({source})\n\
         {}\x20 API   http://{address}/v1  (any API key; Ctrl-C stops)\n\
         \x20 try   curl http://{address}/v1/{path} \
         -H 'content-type: application/json' \\\n\
         \x20         -d '{{\"model\": \"{name}\", {asked}}}'\n",
        serving.summary
    );
    let _closed = std::io::stdout().write_all(welcome.as_bytes());
}
