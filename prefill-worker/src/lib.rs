//! The prefill role: computes a prompt to its first token for a decode worker, and holds the KV
//! blocks under a lease until they were read.

mod service;

use std::sync::Arc;
use std::time::Duration;

use kv_transfer::{LeaseTable, LocalSource, Ways, tcp};
use messaging::Network;
use protocol::v1::prefill_server::PrefillServer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use worker::{Worker, WorkerError};

use service::PrefillService;

/// How often ended leases are looked for.
const COLLECT_INTERVAL: Duration = Duration::from_millis(100);

/// How others read this worker's blocks.
pub struct KvSource {
    /// An empty table: its limits are the caller's choice, and it shows the caller how many leases
    /// there are.
    pub leases: Arc<LeaseTable>,
    /// For readers in other processes.
    pub listener: Option<KvListener>,
}

/// Where readers in other processes connect to.
pub struct KvListener {
    /// Listens already.
    pub server: tcp::Server,
    /// "host:port" as they know it.
    pub address: String,
}

/// Computes prompts until `shutdown`. Readers of this process read blocks by `ways`. Errors: the
/// engine or the server ended by itself.
pub async fn run(
    worker: Worker,
    kv: KvSource,
    network: Network,
    ways: Ways,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let KvSource { leases, listener } = kv;
    let source = Arc::new(LocalSource {
        layout: worker.host.layout().clone(),
        memory: worker.host.memory().clone(),
        leases: leases.clone(),
    });
    ways.local.add(worker.life.clone(), &source);
    if let (Some(agent), Some(listener)) = (&ways.ucx, &listener) {
        listener.server.sender().lend_by(agent.clone());
    }
    let endpoints = |listener: &KvListener| {
        kv_transfer::endpoints(&source, ways.ucx.as_ref(), &listener.address)
    };
    let endpoints = listener.as_ref().map(endpoints).unwrap_or_default();
    let prefill = PrefillServer::new(PrefillService::new(&worker, leases.clone(), endpoints))
        .max_decoding_message_size(protocol::MESSAGE_BYTES_MAX);
    // Its role is a preference: where no decode worker is left, it owns requests too.
    let generation = decode_worker::service(&worker, &network, ways);
    let services = network.data_plane.server().add_service(prefill).add_service(generation);
    tokio::select! {
        biased;
        ended = worker.serve(services, &network, shutdown) => ended,
        () = collect_leases(&leases) => Ok(()),
        () = serve_readers(listener) => Ok(()),
    }
}

/// For ever.
async fn serve_readers(listener: Option<KvListener>) {
    if let Some(listener) = listener {
        listener.server.run().await;
    }
    std::future::pending().await
}

async fn collect_leases(leases: &LeaseTable) {
    let mut interval = tokio::time::interval(COLLECT_INTERVAL);
    loop {
        interval.tick().await;
        let ended = leases.collect(Instant::now().into_std());
        if ended > 0 {
            tracing::debug!(leases = ended, "freed the blocks of ended leases");
        }
    }
}
