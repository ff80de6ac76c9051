//! What hardware is here: the GPUs, as the NVIDIA driver tells of them (NVML), and the host around them,
//! as the kernel does (/sys, /proc).
//!
//! Whatever cannot be read is left out, with a sentence that says why: no driver, an old one, a GPU that
//! fell off its bus, a container that hides things. Nothing here fails, and nothing panics.

mod bus_id;
mod gpu;
mod host;
mod ip;
mod look;
mod message;
mod monitor;
mod network;
mod nvlink;
mod nvml;
mod raw;
mod sample;

use std::path::PathBuf;

use serde::Serialize;

pub use gpu::{Gpu, MigInstance, Pcie, Peer};
pub use host::{Host, NumaNode};
pub use look::Look;
pub use message::Device;
pub use monitor::Monitor;
pub use network::{Nic, RdmaPort};
pub use nvlink::{DirectLinks, Links, NvLinks};
pub use nvml::{Driver, NoGpu};
pub use sample::GpuSample;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Source {
    /// What /sys and /proc are below.
    pub root: PathBuf,
    /// The NVIDIA driver's library; where the system has it, if absent.
    pub nvml: Option<PathBuf>,
}

impl Default for Source {
    fn default() -> Self {
        Self { root: PathBuf::from("/"), nvml: None }
    }
}

/// What hardware is here.
#[derive(Clone, Debug, Serialize)]
pub struct Topology {
    /// The host.
    pub host: Host,
    /// Of the NVIDIA driver; absent without one.
    pub driver_version: Option<String>,
    /// In the driver's order.
    pub gpus: Vec<Gpu>,
    /// Sentences about what could not be read.
    pub notes: Vec<String>,
}

impl Topology {
    /// Reads everything. Takes some milliseconds; the first time, the driver may take seconds, and where a
    /// GPU is wedged, for ever (`Look` does not).
    pub fn read(source: &Source) -> Self {
        Self::by(&Driver::open(source), source)
    }

    /// The same, with a driver that was opened, or not.
    pub fn by(driver: &Result<Driver, NoGpu>, source: &Source) -> Self {
        let host = Host::read(&source.root);
        match driver {
            Ok(driver) => {
                let (gpus, notes) = driver.gpus();
                Self { host, driver_version: driver.version(), gpus, notes }
            }
            Err(none) => {
                let notes = vec![none.to_string()];
                Self { host, driver_version: None, gpus: Vec::new(), notes }
            }
        }
    }
}
