//! The proxies of one member of the cluster.

use std::net::SocketAddr;

use anyhow::Result;

use crate::cluster::ClusterConfig;
use crate::proxy::Proxy;
use crate::role::Role;

/// Of one member; absent where nobody reaches it that way.
#[derive(Default)]
pub struct Proxies {
    /// Its way to NATS.
    pub nats: Option<Proxy>,
    /// Others' way to its data listener.
    pub data: Option<Proxy>,
    /// Others' way to its KV listener.
    pub kv: Option<Proxy>,
}

impl Proxies {
    /// Starts what a member of this role needs. Errors: no free port.
    pub async fn start(role: Role, config: &ClusterConfig, nats: SocketAddr) -> Result<Self> {
        if role == Role::Nats {
            return Ok(Self::default());
        }
        let to_nats = Proxy::start(None).await?;
        to_nats.forward_to(nats);
        let mut proxies = Self { nats: Some(to_nats), ..Self::default() };
        if role.is_worker() {
            proxies.data = Some(Proxy::start(None).await?);
            proxies.kv = Some(Proxy::start(Some(config.kv_bytes_per_s)).await?);
        }
        Ok(proxies)
    }
}
