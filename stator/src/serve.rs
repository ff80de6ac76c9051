//! `stator serve`: every component in one process, joined by an in-process network.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::LoadError;
use gateway::{CardError, Gateway, GatewayConfig};
use kv_transfer::{LeaseLimits, LeaseTable, Ways};
use messaging::Network;
use parking_lot::Mutex;
use prefill_worker::KvSource;
use protocol::v1::{ModelCard, Role};
use protocol::{Incarnation, WorkerLife};
use router::{Router, RouterIdentity};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::{EngineHost, EnginePlace, Worker, WorkerConfig, WorkerError, load_card};

use crate::cli::{EngineArgs, EngineKind, ServeArgs};
use crate::engines::{self, Engines};
use crate::exit::{self, Exit};
use crate::model_directory::{self, ModelDirectory};
use crate::signals::Signals;

/// One of each role.
const WORKERS: usize = 2;

/// Why serving did not begin, or ended by itself. `Display` is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The arguments are wrong.
    #[error("{0}")]
    Arguments(String),
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The model's tokenizer or chat template cannot be used.
    #[error("MODEL {path} cannot be served: {source}; download the model again or convert it anew")]
    Card {
        /// The directory.
        path: String,
        /// What is wrong with it.
        source: CardError,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; stop what uses it or choose another --listen")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The system refuses memory, threads or signals.
    #[error("the system refuses what serving needs: {0}")]
    Resources(#[from] std::io::Error),
    /// A component ended by itself.
    #[error("a component failed: {0}")]
    Component(String),
}

impl ServeError {
    /// The command's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Arguments(_) | Self::Model(_) | Self::Card { .. } => Exit::Usage,
            Self::Listen { .. } | Self::Resources(_) => Exit::Unavailable,
            Self::Component(_) => Exit::Internal,
        }
    }
}

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
    gateway_task: tokio::task::JoinHandle<()>,
    rest: JoinSet<Result<(), WorkerError>>,
}

/// Runs the command until a signal ends it.
pub async fn command(arguments: ServeArgs) -> Result<(), ServeError> {
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
    eprintln!("stator: finishing running requests; Ctrl-C again ends at once");
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(exit::INTERRUPTED);
    });
    serving.stop().await
}

/// Checks everything that can be checked, then starts everything.
pub async fn start(arguments: ServeArgs) -> Result<Serving, ServeError> {
    check_address(&arguments)?;
    let ModelDirectory { path, name } =
        model_directory::find(arguments.model.as_deref()).map_err(ServeError::Arguments)?;
    let name = arguments.model_name.clone().unwrap_or(name);
    if name.is_empty() {
        return Err(ServeError::Arguments(
            "--model-name is empty; give the name clients use".into(),
        ));
    }
    engines::check(&arguments.engine).map_err(ServeError::Arguments)?;
    let engine = arguments.engine.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&path, &name, &engine)).await;
    let (engines, card) = loaded.map_err(|error| ServeError::Component(error.to_string()))??;
    let listener = listen(arguments.listen).await?;
    launch(&arguments, &engines, card, listener)
}

fn check_address(arguments: &ServeArgs) -> Result<(), ServeError> {
    if arguments.listen.ip().is_loopback() || arguments.insecure {
        return Ok(());
    }
    Err(ServeError::Arguments(format!(
        "--listen {} is not a loopback address, and the API asks for no keys: anyone who reaches \
         it may use it; listen on 127.0.0.1, or add --insecure if your network protects it",
        arguments.listen
    )))
}

fn load(
    path: &Path,
    name: &str,
    arguments: &EngineArgs,
) -> Result<(Engines, ModelCard), ServeError> {
    let engines = Engines::load(path, arguments)?;
    let card = load_card(path, name, engines.runner().facts())?;
    gateway::check_card(&card)
        .map_err(|source| ServeError::Card { path: path.display().to_string(), source })?;
    Ok((engines, card))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

fn launch(
    arguments: &ServeArgs,
    engines: &Engines,
    card: ModelCard,
    listener: TcpListener,
) -> Result<Serving, ServeError> {
    let address = listener.local_addr()?;
    let (model_name, serves_chats) = (card.name.clone(), card.chat_template.is_some());
    let start_worker = |name: &str, role| {
        let life = WorkerLife { id: name.into(), incarnation: Incarnation::begin() };
        let (runner, place, card) = (engines.runner(), EnginePlace::Thread, card.clone());
        let engine = engines::sizes(&arguments.engine, runner.as_ref());
        Worker::start(WorkerConfig { life, role, runner, place, engine, card })
    };
    let prefill = start_worker("prefill-0", Role::Prefill)?;
    let decode = start_worker("decode-0", Role::Decode)?;
    let (prefill_host, decode_host) = (prefill.host.clone(), decode.host.clone());

    let (network, ways) = (Network::default(), Ways::default());
    let (stop_gateway, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let mut rest = JoinSet::new();
    let identity = RouterIdentity { id: "router-0".into(), incarnation: Incarnation::begin() };
    let router = Router::new(network.clone(), identity);
    let router_core = router.core();
    let router = router.run(stop_rest.clone());
    rest.spawn(async {
        router.await;
        Ok(())
    });
    let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
    let kv = KvSource { leases, listener: None };
    rest.spawn(decode_worker::run(decode, network.clone(), ways.clone(), stop_rest.clone()));
    rest.spawn(prefill_worker::run(prefill, kv, network.clone(), ways, stop_rest.clone()));

    let grace = Duration::from_secs(arguments.grace_period_s);
    let gateway = Arc::new(Gateway::new(GatewayConfig { grace, ..Default::default() }, network));
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
    pub async fn failed(&mut self) -> ServeError {
        tokio::select! {
            ended = &mut self.gateway_task => gateway_failed(ended),
            Some(ended) = self.rest.join_next() => component_failed("a worker or the router", ended),
        }
    }

    /// Stops accepting, lets requests end within the grace period, then stops everything.
    pub async fn stop(mut self) -> Result<(), ServeError> {
        self.stop_gateway.cancel();
        let served = self.gateway_task.await;
        self.stop_rest.cancel();
        while self.rest.join_next().await.is_some() {}
        served.map_err(|error| gateway_failed(Err(error)))
    }
}

fn gateway_failed(ended: Result<(), tokio::task::JoinError>) -> ServeError {
    component_failed("the gateway", ended.map(Ok::<(), std::convert::Infallible>))
}

fn component_failed<E: std::error::Error>(
    name: &str,
    ended: Result<Result<(), E>, tokio::task::JoinError>,
) -> ServeError {
    ServeError::Component(match ended {
        Ok(Ok(())) => format!("{name} ended"),
        Ok(Err(error)) => match error.source() {
            Some(source) => format!("{name}: {error} ({source})"),
            None => format!("{name}: {error}"),
        },
        Err(error) => format!("{name}: {error}"),
    })
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
