//! The decode role: owns requests. Reserves blocks, has the prompt computed by a prefill worker
//! or computes it itself, pulls the KV blocks, decodes.

mod peers;
mod prefill_error;
mod prefill_source;
mod remote_prefill;
mod request;
mod request_context;
mod service;
mod session;

use std::sync::Arc;

use kv_transfer::Ways;
use messaging::{Bus, Network};
use protocol::v1::generation_server::{Generation, GenerationServer};
use tokio_util::sync::CancellationToken;
use worker::{EngineHost, Grammars, Presence, Transfers, Worker, WorkerError};

use peers::Peers;
use service::GenerationService;

/// What the tasks of a decode worker share.
struct Context {
    host: Arc<EngineHost>,
    presence: Arc<Presence>,
    grammars: Arc<Grammars>,
    numerics_id: String,
    ways: Ways,
    peers: Peers,
    transfers: Arc<Transfers>,
    bus: Bus,
}

/// What a worker serves that owns requests. Reads prefill workers' blocks by `ways`.
pub fn service(
    worker: &Worker,
    network: &Network,
    ways: Ways,
) -> GenerationServer<impl Generation> {
    let context = Arc::new(Context {
        host: worker.host.clone(),
        presence: worker.presence.clone(),
        grammars: worker.grammars.clone(),
        numerics_id: worker.numerics_id().to_string(),
        ways,
        peers: Peers::new(network.data_plane.clone()),
        transfers: worker.transfers.clone(),
        bus: network.bus.clone(),
    });
    GenerationServer::new(GenerationService::new(context))
        .max_decoding_message_size(protocol::MESSAGE_BYTES_MAX)
}

/// Serves requests until `shutdown`. Errors: the engine or the server ended by itself.
pub async fn run(
    worker: Worker,
    network: Network,
    ways: Ways,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let service = service(&worker, &network, ways);
    let services = network.data_plane.server().add_service(service);
    worker.serve(services, &network, shutdown).await
}
