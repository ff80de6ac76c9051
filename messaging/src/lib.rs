//! How components find and talk to each other: the bus (publish, subscribe, request), the registry
//! of who is there, and the data plane's connections.
//!
//! A network is in process (`Network::default()`) or of a cluster, over NATS
//! (`Network::connect`). Components cannot tell the difference: messages are bytes and the data
//! plane is gRPC in both.

mod bus;
mod data_plane;
mod faults;
mod local_bus;
mod nats;
mod registry;
mod table;

pub use bus::{Bus, Request, RequestError, Requests, Subscription};
pub use data_plane::{
    ConnectError, Connection, DataPlane, Incoming, TcpOptions, Tls, TlsError, TlsFiles,
    advertised_endpoint, advertised_host,
};
pub use faults::{Faults, Link};
pub use nats::{NatsOptions, NetworkCounters, NetworkError};
pub use registry::{Change, Registry, Watch};

use std::sync::Arc;
use std::time::Duration;

/// All ways to reach other components.
#[derive(Clone, Default)]
pub struct Network {
    /// Publish, subscribe, request.
    pub bus: Bus,
    /// Who is there.
    pub registry: Registry,
    /// gRPC connections.
    pub data_plane: DataPlane,
    cluster: Option<Cluster>,
}

#[derive(Clone)]
struct Cluster {
    link: Arc<nats::Link>,
    bus: nats::NatsBus,
    keeper: nats::Keeper,
}

impl Network {
    /// A network in which `faults` happen: for simulations.
    pub fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self {
            bus: Bus::with_faults(faults.clone()),
            registry: Registry::default(),
            data_plane: DataPlane::with_faults(faults),
            cluster: None,
        }
    }

    /// The network of a cluster, over its NATS server. A server that cannot be reached is tried
    /// again until `connect_timeout`; one that will not do is an error at once. From then on, the
    /// connection comes back by itself.
    ///
    /// Entries put into its registry expire when the last handle to this network is dropped, unless
    /// they are deleted and flushed before. The data plane is that of `Network::default()`; set
    /// another (`DataPlane::tcp`) before components get to see this network.
    pub async fn connect(options: NatsOptions) -> Result<Self, NetworkError> {
        let nats::Connected { bus, keeper, table, link } = nats::connect(options).await?;
        Ok(Self {
            bus: Bus::over_nats(bus.clone()),
            registry: Registry::over_nats(table, keeper.clone()),
            data_plane: DataPlane::default(),
            cluster: Some(Cluster { link, bus, keeper }),
        })
    }

    /// Whether the server is there; always so in process.
    pub fn is_connected(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.link.is_connected())
    }

    /// What happened since the start.
    pub fn counters(&self) -> NetworkCounters {
        match &self.cluster {
            Some(cluster) => cluster.link.counters(),
            None => NetworkCounters { dropped: self.bus.dropped(), ..Default::default() },
        }
    }

    /// Waits until the server has everything that was published, subscribed and registered so far:
    /// for the end of a process. False where that took longer than `timeout`.
    pub async fn flush(&self, timeout: Duration) -> bool {
        match &self.cluster {
            Some(cluster) => nats::flush(&cluster.bus, &cluster.keeper, timeout).await,
            None => true,
        }
    }
}
