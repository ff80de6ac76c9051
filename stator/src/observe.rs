//! What of a component people and Prometheus can see, and where.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gateway::Gateway;
use kv_transfer::LeaseTable;
use kv_transfer::ucx::{Agent, AgentStatus};
use messaging::Network;
use telemetry::{Metrics, Reading};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use worker::{Copied, EngineHost, Transfers};

use crate::addresses::{self, Protection};
use crate::cli::AdminArgs;
use crate::error::CommandError;
use crate::hardware::Hardware;

/// Binds the admin server. Errors: the address may not be listened on, or cannot be.
pub async fn bind(arguments: &AdminArgs, insecure: bool) -> Result<TcpListener, CommandError> {
    let protection = Protection { insecure, client_certificates: false };
    let why = "it asks for no keys: anyone who reaches it may read it";
    addresses::check("--admin", arguments.admin, protection, why)?;
    addresses::bind("--admin", arguments.admin).await
}

/// Serves the admin routes until the process ends. Returns where.
pub fn serve(
    listener: TcpListener,
    metrics: &Metrics,
    ready: impl Fn() -> bool + Clone + Send + Sync + 'static,
) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let routes = telemetry::routes(metrics, ready);
    tokio::spawn(async move {
        if let Err(error) = telemetry::serve(listener, routes, CancellationToken::new()).await {
            tracing::error!(%error, "the admin server ended");
        }
    });
    Ok(address)
}

/// Shows what processes with workers have in common. `transfers` are those of the worker that decodes.
pub fn workers(
    network: &Network,
    hosts: &[Arc<EngineHost>],
    leases: &Arc<LeaseTable>,
    transfers: &Arc<Transfers>,
    machine: &Hardware,
) -> Metrics {
    let metrics = Metrics::new();
    self::network(&metrics, network);
    engines(&metrics, hosts.to_vec());
    self::leases(&metrics, leases);
    self::transfers(&metrics, transfers);
    machine.show(&metrics);
    metrics
}

/// Shows how a component's connection to NATS does.
pub fn network(metrics: &Metrics, network: &Network) {
    let connected = network.clone();
    metrics.gauge(
        "stator_nats_connected",
        "Whether the NATS server is there: 1 or 0.",
        move || f64::from(u8::from(connected.is_connected())),
    );
    let counted = network.clone();
    metrics.counter("stator_nats_reconnects", "Times the NATS server came back.", move || {
        counted.counters().reconnects as f64
    });
    let counted = network.clone();
    metrics.counter(
        "stator_nats_dropped",
        "Messages lost to full queues, or to a NATS server that was away.",
        move || counted.counters().dropped as f64,
    );
}

/// Shows how many workers a gateway or a router knows.
pub fn workers_known(metrics: &Metrics, count: impl Fn() -> usize + Send + Sync + 'static) {
    metrics.gauge("stator_workers_known", "Workers of the cluster that it knows.", move || {
        count() as f64
    });
}

/// Shows what a gateway does.
pub fn gateway(metrics: &Metrics, gateway: &Arc<Gateway>) {
    let read = gateway.clone();
    workers_known(metrics, move || read.workers());
    let read = gateway.clone();
    metrics.gauge("stator_routers_known", "Routers of the cluster that it knows.", move || {
        read.routers() as f64
    });
    let read = gateway.clone();
    metrics.gauge("stator_requests_in_flight", "Requests that have not ended.", move || {
        read.requests_in_flight() as f64
    });
    let read = gateway.clone();
    let migrations = Reading {
        name: "stator_migrations",
        help: "Answers that went on at another worker, by why the one before could not.",
        is_counter: true,
        label: Some("cause"),
    };
    metrics.read(migrations, move || {
        read.migrations().into_iter().map(|(cause, count)| (cause, count as f64)).collect()
    });
    let read = gateway.clone();
    metrics.counter(
        "stator_migrations_to_other_numerics",
        "Of these, answers that went on under another arithmetic, as no worker of theirs was left.",
        move || read.migrations_to_other_numerics() as f64,
    );
    let read = gateway.clone();
    metrics.counter(
        "stator_fallback_decisions",
        "Requests for which this gateway chose workers itself, as no router answered.",
        move || read.fallback_decisions() as f64,
    );
}

/// Shows what the engines of this process do, all together.
pub fn engines(metrics: &Metrics, hosts: Vec<Arc<EngineHost>>) {
    let hosts: Arc<[_]> = hosts.into();
    let sum = move |of: fn(&EngineHost) -> usize| {
        let hosts = hosts.clone();
        move || hosts.iter().map(|host| of(host)).sum::<usize>() as f64
    };
    let blocks = Reading {
        name: "stator_kv_blocks",
        help: "KV blocks here: free, cached (kept for prompts that begin alike) or used.",
        is_counter: false,
        label: Some("state"),
    };
    let free = sum(|host| host.load().blocks.free);
    let cached = sum(|host| host.load().blocks.cached);
    let used = sum(|host| host.load().blocks.used);
    metrics.read(blocks, move || vec![("free", free()), ("cached", cached()), ("used", used())]);
    let sequences = Reading {
        name: "stator_sequences",
        help: "Sequences in the engines here: running or waiting.",
        is_counter: false,
        label: Some("state"),
    };
    let running = sum(|host| host.load().running);
    let waiting = sum(|host| host.load().waiting);
    metrics.read(sequences, move || vec![("running", running()), ("waiting", waiting())]);
    let steps = sum(|host| host.progress().steps as usize);
    metrics.counter("stator_steps", "Steps that the engines here have made.", steps);
    let preemptions = sum(|host| host.load().preemptions as usize);
    let help = "Times that sequences here gave their KV blocks to others and began again.";
    metrics.counter("stator_preemptions", help, preemptions);
    let guessed = sum(|host| host.guesses().computed as usize);
    let help = "Tokens that the engines here guessed from what texts repeat (prompt lookup).";
    metrics.counter("stator_speculative_tokens", help, guessed);
    let accepted = sum(|host| host.guesses().accepted as usize);
    let help = "Of these, tokens that came true.";
    metrics.counter("stator_speculative_tokens_accepted", help, accepted);
}

/// Shows how many leases others hold on a worker's blocks.
pub fn leases(metrics: &Metrics, leases: &Arc<LeaseTable>) {
    let leases = leases.clone();
    metrics.gauge("stator_kv_leases", "Leases on KV blocks of this worker.", move || {
        leases.len() as f64
    });
}

/// Shows by which ways KV blocks came to a worker.
pub fn transfers(metrics: &Metrics, transfers: &Arc<Transfers>) {
    let show = |name, help, of: fn(Copied) -> u64| {
        let transfers = transfers.clone();
        metrics.read(Reading { name, help, is_counter: true, label: Some("way") }, move || {
            transfers.copied().into_iter().map(|(way, copied)| (way, of(copied) as f64)).collect()
        });
    };
    let help = "Copies of KV blocks from other workers, by the way that made them.";
    show("stator_kv_copies", help, |copied| copied.copies);
    show("stator_kv_copied_bytes", "Their bytes.", |copied| copied.bytes);
    let failed = transfers.clone();
    let help = "Prompts computed here that a prefill worker failed to hand over.";
    metrics.counter("stator_remote_prefills_failed", help, move || failed.failed() as f64);
}

/// Shows what a worker's UCX agent does.
pub fn ucx(metrics: &Metrics, agent: &Agent) {
    let read = |of: fn(&AgentStatus) -> &AtomicU64| {
        let agent = agent.clone();
        move || of(agent.status()).load(Ordering::Relaxed) as f64
    };
    let bytes = read(|status| &status.bytes);
    metrics.counter("stator_kv_ucx_bytes", "Bytes of KV blocks that came by UCX.", bytes);
    let failures = read(|status| &status.failures);
    let help = "Transfers that UCX failed at, and that were made by TCP.";
    metrics.counter("stator_kv_ucx_failures", help, failures);
    let lives = read(|status| &status.lives);
    metrics.counter("stator_kv_ucx_agents", "UCX agents that this worker has started.", lives);
}
