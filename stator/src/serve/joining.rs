//! How `serve` belongs to a cluster, if it does.

use std::net::SocketAddr;

use kv_transfer::Ways;
use messaging::{DataPlane, Network, TcpOptions, advertised_host};
use prefill_worker::KvListener;

use crate::addresses::{self, Protection};
use crate::cli::ServeArgs;
use crate::error::CommandError;
use crate::{cluster, kv_source};

/// What its components have in common.
pub struct Joined {
    /// In process, or of the cluster.
    pub network: Network,
    /// How its workers read blocks.
    pub ways: Ways,
    /// Where others read its blocks.
    pub kv: Option<KvListener>,
}

/// How others of a cluster reach its workers. Errors: nothing protects that address, the host to
/// advertise has none, or the TLS files.
pub async fn data_plane(arguments: &ServeArgs) -> Result<DataPlane, CommandError> {
    let ServeArgs { advertise, tls, insecure, .. } = arguments;
    let listen = listen(arguments);
    let client_certificates = tls.tls_ca.is_some() && tls.tls_cert.is_some();
    let protection = Protection { insecure: *insecure, client_certificates };
    addresses::check("--advertise opens", listen, protection, addresses::OPEN_DATA)?;
    addresses::check_advertised("serve", listen, advertise.as_deref()).await?;
    let (advertise, tls) = (advertise.clone(), cluster::tls_files(tls));
    Ok(DataPlane::tcp(TcpOptions { listen, advertise, tls })?)
}

/// Addresses on this machine alone, unless others are told a host.
fn listen(arguments: &ServeArgs) -> SocketAddr {
    let host = if arguments.advertise.is_some() { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
    SocketAddr::from((host, 0))
}

/// Joins the cluster, if there is one. Errors: its NATS server, or an address.
pub async fn join(arguments: &ServeArgs, data_plane: DataPlane) -> Result<Joined, CommandError> {
    let Some(url) = &arguments.nats else {
        return Ok(Joined { network: Network::default(), ways: Ways::default(), kv: None });
    };
    let ways = Ways { tcp: kv_source::connections(&data_plane), ..Default::default() };
    let advertise = arguments.advertise.as_deref().map(advertised_host);
    let kv = kv_source::listen(listen(arguments), advertise, &ways, &data_plane).await?;
    let name = cluster::name(None, "serve")?;
    let network = cluster::join(url, &arguments.login, &name, data_plane).await?;
    Ok(Joined { network, ways, kv: Some(kv) })
}

/// Alone, a name that logs and tests know; among others, one that nobody else has.
pub fn name(arguments: &ServeArgs, role: &str) -> Result<String, CommandError> {
    match arguments.nats {
        None => Ok(format!("{role}-0")),
        Some(_) => cluster::name(None, role),
    }
}
