//! `stator serve`: every component in one process, joined by an in-process network or, with `--nats`,
//! to a cluster.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::{Gateway, GatewayConfig};
use kv_transfer::{LeaseLimits, LeaseTable, Ways};
use messaging::{DataPlane, Network, TcpOptions, advertised_host};
use parking_lot::Mutex;
use prefill_worker::{KvListener, KvSource};
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
use crate::signals::Signals;
use crate::{cluster, kv_source, model_directory, observe};

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
        failed = serving.failed() => return Err(failed),
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
    let data_plane = data_plane(&arguments).await?;
    let (engines, card) = engines::load(model, arguments.engine.clone()).await?;
    let listener = addresses::bind("--listen", arguments.listen).await?;
    let network = match &arguments.nats {
        None => Network::default(),
        Some(url) => {
            let name = cluster::name(None, "serve")?;
            cluster::join(url, &arguments.login, &name, data_plane).await?
        }
    };
    launch(&arguments, &engines, card, listener, network).await
}

/// For a cluster: where its others reach these workers.
async fn data_plane(arguments: &ServeArgs) -> Result<DataPlane, CommandError> {
    let ServeArgs { advertise, tls, insecure, .. } = arguments;
    let listen = cluster_listen(arguments);
    let client_certificates = tls.tls_ca.is_some() && tls.tls_cert.is_some();
    let protection = Protection { insecure: *insecure, client_certificates };
    addresses::check("the data plane's address", listen, protection, addresses::OPEN_DATA)?;
    addresses::check_advertised("the data plane", listen, advertise.as_deref()).await?;
    let (advertise, tls) = (advertise.clone(), cluster::tls_files(tls));
    Ok(DataPlane::tcp(TcpOptions { listen, advertise, tls })?)
}

/// Where others of a cluster connect to: on this machine, unless others are told a host.
fn cluster_listen(arguments: &ServeArgs) -> SocketAddr {
    let host = if arguments.advertise.is_some() { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
    SocketAddr::from((host, 0))
}

async fn kv_listener(arguments: &ServeArgs, ways: &Ways) -> Result<KvListener, CommandError> {
    let listen = cluster_listen(arguments);
    kv_source::check_open("--advertise", listen, arguments.insecure)?;
    kv_source::listen(listen, arguments.advertise.as_deref().map(advertised_host), ways).await
}

async fn launch(
    arguments: &ServeArgs,
    engines: &Engines,
    card: ModelCard,
    listener: TcpListener,
    network: Network,
) -> Result<Serving, CommandError> {
    let address = listener.local_addr()?;
    let (model_name, serves_chats) = (card.name.clone(), card.chat_template.is_some());
    // Alone, names that logs and tests know; among others, names that nobody else has.
    let name = |role: &str| match arguments.nats {
        None => Ok(format!("{role}-0")),
        Some(_) => cluster::name(None, role),
    };
    let start_worker = |role, role_name: &str| {
        let id = name(role_name)?.as_str().into();
        let life = WorkerLife { id, incarnation: Incarnation::begin() };
        let (runner, place, card) = (engines.runner(), EnginePlace::Thread, card.clone());
        let engine = engines::sizes(&arguments.engine, runner.as_ref());
        let config = WorkerConfig { life, role, runner, place, engine, card };
        Ok::<_, CommandError>(Worker::start(config)?)
    };
    let prefill = start_worker(Role::Prefill, "prefill")?;
    let decode = start_worker(Role::Decode, "decode")?;
    let (prefill_host, decode_host) = (prefill.host.clone(), decode.host.clone());
    let workers = arguments.nats.iter().flat_map(|_| [&prefill, &decode]);
    let presences = workers.map(|worker| worker.presence.clone()).collect();

    let ways = Ways::default();
    let (stop_gateway, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let mut rest = JoinSet::new();
    let identity = RouterIdentity { id: name("router")?, incarnation: Incarnation::begin() };
    let router = Router::new(network.clone(), identity);
    let router_core = router.core();
    let router = router.run(stop_rest.clone());
    rest.spawn(async {
        router.await;
        Ok(())
    });
    let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
    let metrics = Metrics::new();
    observe::network(&metrics, &network);
    observe::engines(&metrics, vec![prefill_host.clone(), decode_host.clone()]);
    observe::leases(&metrics, &leases);
    let listener_kv = match arguments.nats {
        None => None,
        Some(_) => Some(kv_listener(arguments, &ways).await?),
    };
    let kv = KvSource { leases, listener: listener_kv };
    let (joined, stop) = (network.clone(), stop_rest.clone());
    rest.spawn(decode_worker::run(decode, joined.clone(), ways.clone(), stop.clone()));
    rest.spawn(prefill_worker::run(prefill, kv, joined, ways, stop));

    let grace = Duration::from_secs(arguments.grace_period_s);
    let gateway = Gateway::new(GatewayConfig { grace, ..Default::default() }, network.clone());
    let gateway = Arc::new(gateway.with_routes(telemetry::metrics_route(&metrics)));
    observe::gateway(&metrics, &gateway);
    let (serving_gateway, stop) = (gateway.clone(), stop_gateway.clone());
    let gateway_task = tokio::spawn(async move { serving_gateway.serve(listener, stop).await });
    Ok(Serving {
        address,
        model_name,
        serves_chats,
        prefill: prefill_host,
        decode: decode_host,
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

impl Serving {
    /// Waits until the model can be asked.
    pub async fn ready(&self) {
        self.gateway.has_workers(WORKERS).await;
    }

    /// Waits until a component ends by itself, which none should.
    pub async fn failed(&mut self) -> CommandError {
        tokio::select! {
            ended = &mut self.gateway_task => gateway_failed(ended),
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
        served.map_err(|error| gateway_failed(Err(error)))
    }
}

fn gateway_failed(ended: Result<(), tokio::task::JoinError>) -> CommandError {
    CommandError::of_component("the gateway", ended.map(Ok::<(), std::convert::Infallible>))
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
         \x20 API   http://{address}/v1  (any API key; Ctrl-C stops)\n\
         \x20 try   curl http://{address}/v1/{path} \
         -H 'content-type: application/json' \\\n\
         \x20         -d '{{\"model\": \"{name}\", {asked}}}'\n"
    );
    let _closed = std::io::stdout().write_all(welcome.as_bytes());
}
