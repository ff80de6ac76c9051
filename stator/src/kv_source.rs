//! Where other processes read a prefill worker's KV blocks.

use std::net::SocketAddr;

use kv_transfer::{Ways, tcp};
use messaging::advertised_endpoint;
use prefill_worker::KvListener;

use crate::addresses::{self, Protection};
use crate::cli::{DataArgs, WorkerArgs};
use crate::error::CommandError;

/// Blocks travel in the clear, whatever TLS the data plane has.
const OPEN_KV: &str = "KV blocks, from which prompts can be read, travel from there unencrypted";

/// Where it will listen. Errors: nothing protects that address.
pub fn check(arguments: &WorkerArgs) -> Result<SocketAddr, CommandError> {
    let DataArgs { data_listen, kv_listen, .. } = &arguments.data;
    let listen = kv_listen.unwrap_or_else(|| SocketAddr::new(data_listen.ip(), 0));
    let flag = if kv_listen.is_some() { "--kv-listen" } else { "--data-listen" };
    check_open(flag, listen, arguments.component.insecure)?;
    Ok(listen)
}

/// Refuses an address beyond this machine, unless the user says that the network protects it.
pub fn check_open(flag: &str, listen: SocketAddr, insecure: bool) -> Result<(), CommandError> {
    let protection = Protection { insecure, client_certificates: false };
    addresses::check(flag, listen, protection, OPEN_KV)
}

/// Listens. `advertise` is HOST or HOST:PORT for others. Errors: the address cannot be listened on.
pub async fn listen(
    listen: SocketAddr,
    advertise: Option<&str>,
    ways: &Ways,
) -> Result<KvListener, CommandError> {
    let bound = tcp::Server::bind(listen, ways.local.clone(), tcp::ServerLimits::default()).await;
    let failed = |source| CommandError::Listen { address: listen, flag: "--kv-listen", source };
    let server = bound.map_err(failed)?;
    let bound = server.local_address()?;
    let address = match advertise {
        Some(advertise) => advertised_endpoint(advertise, bound.port()),
        None => bound.to_string(),
    };
    Ok(KvListener { server, address })
}
