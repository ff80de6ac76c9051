//! What of a component people and Prometheus can see, and where.

use std::net::SocketAddr;
use std::sync::Arc;

use kv_transfer::LeaseTable;
use messaging::Network;
use telemetry::{Metrics, Reading};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use worker::EngineHost;

use crate::addresses::{self, Protection};
use crate::cli::AdminArgs;
use crate::error::CommandError;

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

/// Shows how a component's connection to NATS does.
pub fn network(metrics: &Metrics, network: &Network) {
    let connected = network.clone();
    metrics.gauge("stator_nats_connected", "Whether the NATS server is there: 1 or 0.", move || {
        f64::from(u8::from(connected.is_connected()))
    });
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

/// Shows what a worker's engine does.
pub fn engine(metrics: &Metrics, host: &Arc<EngineHost>) {
    let read = host.clone();
    let blocks = Reading {
        name: "stator_kv_blocks",
        help: "KV blocks of this worker: free, cached (kept for prompts that begin alike) or used.",
        is_counter: false,
        label: Some("state"),
    };
    metrics.read(blocks, move || {
        let blocks = read.load().blocks;
        let counts = [("free", blocks.free), ("cached", blocks.cached), ("used", blocks.used)];
        counts.map(|(state, count)| (state, count as f64)).to_vec()
    });
    let read = host.clone();
    let sequences = Reading {
        name: "stator_sequences",
        help: "Sequences in this worker's engine: running or waiting.",
        is_counter: false,
        label: Some("state"),
    };
    metrics.read(sequences, move || {
        let load = read.load();
        vec![("running", load.running as f64), ("waiting", load.waiting as f64)]
    });
    let read = host.clone();
    metrics.counter("stator_steps", "Steps that this worker's engine has made.", move || {
        read.progress().steps as f64
    });
}

/// Shows how many leases others hold on a worker's blocks.
pub fn leases(metrics: &Metrics, leases: &Arc<LeaseTable>) {
    let leases = leases.clone();
    metrics.gauge("stator_kv_leases", "Leases on KV blocks of this worker.", move || {
        leases.len() as f64
    });
}
