//! The NVIDIA driver, found at run time: devices, memory, streams, kernels and graphs.
//!
//! Bindings of our own rather than a crate's: what is missing in an old driver has to be an error and
//! no panic, one binary has to start with and without a driver, and tests bring a driver of their own
//! (`fake/`). Everything that is made holds the `Device` that it is on, and is given back on drop.

mod allocation;
mod device;
mod driver;
mod error;
#[cfg(feature = "test-support")]
pub mod fake;
mod graph;
mod library;
mod mapping;
mod module;
mod pinned;
mod rdma;
mod stream;

pub use allocation::Allocation;
pub use device::{Current, Device, Lane};
pub use driver::{
    DevicePointer, Driver, DriverCode, EVENT_DISABLE_TIMING, EVENT_INTERPROCESS, Handle, IpcHandle,
};
pub use error::CudaError;
pub use graph::Graph;
pub use library::why_not;
pub use mapping::Mapping;
pub use module::{Function, Module};
pub use pinned::Pinned;
pub use rdma::RemoteWrites;
pub use stream::Stream;
