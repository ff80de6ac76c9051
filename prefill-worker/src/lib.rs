//! The prefill role: computes a prompt to its first token for a decode worker, and holds the KV
//! blocks under a lease until they were read.

mod service;

use std::sync::Arc;
use std::time::Duration;

use kv_transfer::{LeaseTable, LocalPools, LocalSource};
use messaging::Network;
use protocol::v1::prefill_server::PrefillServer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use worker::{Worker, WorkerError};

use service::PrefillService;

/// How often ended leases are looked for.
const COLLECT_INTERVAL: Duration = Duration::from_millis(100);

/// Computes prompts until `shutdown`. `leases` is an empty table: its limits are the caller's choice,
/// and it shows the caller how many leases there are. Decode workers of this process read blocks by
/// `pools`. Errors: the engine or the server ended by itself.
pub async fn run(
    worker: Worker,
    leases: Arc<LeaseTable>,
    network: Network,
    pools: Arc<LocalPools>,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let source = Arc::new(LocalSource {
        layout: worker.host.layout().clone(),
        memory: worker.host.memory().clone(),
        leases: leases.clone(),
    });
    pools.add(worker.life.clone(), &source);
    let prefill = PrefillServer::new(PrefillService::new(&worker, leases.clone()))
        .max_decoding_message_size(protocol::MESSAGE_BYTES_MAX);
    // Its role is a preference: where no decode worker is left, it owns requests too.
    let generation = decode_worker::service(&worker, &network, pools);
    let services = network.data_plane.server().add_service(prefill).add_service(generation);
    tokio::select! {
        biased;
        ended = worker.serve(services, &network, shutdown) => ended,
        () = collect_leases(&leases) => Ok(()),
    }
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
