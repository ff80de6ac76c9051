//! How components find and talk to each other: the bus (publish, subscribe, request), the registry
//! of workers, and the data plane's connections.
//!
//! Everything here is in process for now. Messages are bytes all the same, and the data plane is
//! gRPC over `tokio::io::duplex`, so that components cannot tell the difference when it is not.

mod bus;
mod data_plane;
mod faults;
mod registry;

pub use bus::{Bus, Request, RequestError, Requests, Subscription};
pub use data_plane::{ConnectError, DataPlane, Incoming};
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
