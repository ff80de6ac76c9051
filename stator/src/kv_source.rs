//! Where other processes read a prefill worker's KV blocks.

use std::net::SocketAddr;

use kv_transfer::{Ways, tcp};
use messaging::{DataPlane, advertised_endpoint};
use prefill_worker::KvListener;

use crate::addresses;
use crate::cli::{DataArgs, WorkerArgs};
use crate::cluster;
use crate::error::CommandError;

/// Why blocks must not be open to anyone.
const OPEN_KV: &str = "KV blocks, from which prompts can be read, travel from there unencrypted, \
    unless --tls-cert, --tls-key and --tls-ca are given";

/// Where it will listen. Errors: nothing protects that address.
pub fn check(arguments: &WorkerArgs) -> Result<SocketAddr, CommandError> {
    let DataArgs { data_listen, kv_listen, .. } = &arguments.data;
    let listen = kv_listen.unwrap_or_else(|| SocketAddr::new(data_listen.ip(), 0));
    let flag = if kv_listen.is_some() { "--kv-listen" } else { "--data-listen" };
    let protection = cluster::protection(&arguments.component, &arguments.data.tls);
    addresses::check(flag, listen, protection, OPEN_KV)?;
    Ok(listen)
}

/// What reads the blocks of others, with the data plane's TLS.
pub fn connections(data_plane: &DataPlane) -> tcp::Connections {
    match data_plane.tls() {
        None => tcp::Connections::default(),
        Some(tls) => {
            tcp::Connections::with_tls(tcp::ReaderLimits::default(), tls.connector.clone())
        }
    }
}

/// Listens, with the data plane's TLS. `advertise` is HOST or HOST:PORT for others. Errors: the address cannot be listened on.
pub async fn listen(
    listen: SocketAddr,
    advertise: Option<&str>,
    ways: &Ways,
    data_plane: &DataPlane,
) -> Result<KvListener, CommandError> {
    let bound = tcp::Server::bind(listen, ways.local.clone(), tcp::ServerLimits::default()).await;
    let failed = |source| CommandError::Listen { address: listen, flag: "--kv-listen", source };
    let mut server = bound.map_err(failed)?;
    if let Some(acceptor) = data_plane.tls().and_then(|tls| tls.acceptor.clone()) {
        server = server.with_tls(acceptor);
    }
    let bound = server.local_address()?;
    let address = match advertise {
        Some(advertise) => advertised_endpoint(advertise, bound.port()),
        None => bound.to_string(),
    };
    Ok(KvListener { server, address })
}
