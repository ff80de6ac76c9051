//! Moves KV blocks from the pool of one worker into the pool of another.
//!
//! The reader *pulls*: nobody may write into another worker's memory, so that a late write cannot
//! corrupt it. A lease pins the blocks at their source from grant to `finish`; what was read
//! counts only once `finish` said that the lease was alive throughout.
//!
//! Knows layouts, blocks, leases and bytes; knows no model and no bus.

pub mod cuda;
mod error;
mod layout;
mod lease;
mod local;
mod memory;
mod plan;
pub mod tcp;
pub mod ucx;
mod ways;

pub use error::{Advice, TransferError};
pub use layout::KvLayout;
pub use lease::{Capability, Holder, Lease, LeaseError, LeaseId, LeaseLimits, LeaseTable, ReadPin};
pub use local::{LocalPools, LocalSource, TransferFaults};
pub use memory::{BlockWriter, HostMemory, KvMemory};
pub use plan::{BlockCopy, CopyOp, Extent, PlanError, plan};
pub use ways::{CUDA, Pulled, TCP, UCX, Way, Ways, endpoints};
