//! How components find and talk to each other: the bus (publish, subscribe, request), the registry
//! of workers, and the data plane's connections.
//!
//! Messages are bytes and the data plane is gRPC in one process too, so that components cannot tell
//! whether they share a process or a network.

mod bus;
mod data_plane;
mod faults;
mod registry;

pub use bus::{Bus, Request, RequestError, Requests, Subscription};
pub use data_plane::{
    ConnectError, Connection, DataPlane, Incoming, TcpOptions, TlsError, TlsFiles,
};
pub use faults::{Faults, Link};
pub use registry::{Change, Registry, Watch};

use std::sync::Arc;

/// All ways to reach other components.
#[derive(Clone, Default)]
pub struct Network {
    /// Publish, subscribe, request.
    pub bus: Bus,
    /// Who is there.
    pub registry: Registry,
    /// gRPC connections.
    pub data_plane: DataPlane,
}

impl Network {
    /// A network in which `faults` happen: for simulations.
    pub fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self {
            bus: Bus::with_faults(faults.clone()),
            registry: Registry::default(),
            data_plane: DataPlane::with_faults(faults),
        }
    }
}
