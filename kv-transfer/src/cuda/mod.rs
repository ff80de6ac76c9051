//! Pools in the memory of GPUs, and the cuda way between the GPUs of one host.
//!
//! `CudaMemory` is a pool in a GPU's memory. How blocks come
//! from one pool into another:
//!
//! | Pools | How |
//! |---|---|
//! | of one process, on one GPU | copies within the GPU's memory |
//! | of one process, on two GPUs | copies between peers (NVLink or PCIe), by way of the driver's host memory where the GPUs cannot reach each other |
//! | of two processes on one host | the reader maps the source's pool (IPC) and copies for itself |
//! | anything else, and wherever that fails | tcp, by way of pinned host memory on both sides |
//!
//! What is copied is ordered by events: copies wait on the GPU for the computation that wrote the
//! source's blocks, and for the one that used the destination's before. They run on streams of the
//! lowest priority, beside the computation of the model.
//!
//! Another process is lent the handles of a pool only over a connection of the tcp way, for blocks
//! that its lease names, and these stay pinned until it says that it has copied them. Whoever once
//! mapped a pool could go on reading all of it: that is what the driver offers, and why the source
//! gives handles to nobody without a lease. What was read counts by `finish`, as on every way.
//!
//! What is bounded, and what happens at the bound:
//! - Pinned host memory: a buffer of 4 MiB, or of one block, per pull over tcp and per read that is
//!   answered, whose numbers the tcp way bounds; 8 buffers and 8 streams are kept per GPU.
//! - Mapped pools: 64; those beyond are mapped for one pull at a time. A mapping ends with its source,
//!   or when an idle connection to it is closed (`tcp::IDLE_MAX`), and is then made anew.
//! - Time: a loan lasts `tcp::READ_MAX`. A reader's deadline is looked at between loans of 256 MiB;
//!   a copy that a GPU has begun cannot be called back, and is always waited for.

mod copies;
mod landing;
mod lent;
mod memory;
mod reader;

pub use cuda_driver::{CudaError, Device, Driver, DriverCode, Function};
pub use memory::CudaMemory;
pub use reader::Reader;

pub(crate) use copies::copy_between;
pub(crate) use landing::{Landing, Staging};
pub(crate) use lent::Lent;
pub(crate) use memory::GRAIN_BYTES;
pub(crate) use reader::{address_of, host_id};
