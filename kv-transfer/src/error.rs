//! Why blocks could not be moved, and what a reader can do about it.

use std::io;

use protocol::WorkerLife;

use crate::cuda::CudaError;
use crate::ucx::UcxError;
use crate::{LeaseError, PlanError};

/// Why blocks could not be moved. What was written into the destination until then does not count.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The source worker, or this life of it, has no pool there.
    #[error("worker {} has no pool there, or is in another life", .0.id)]
    SourceGone(WorkerLife),
    /// Blocks of another shape or numerics id.
    #[error("the pools' KV layouts differ")]
    LayoutMismatch,
    /// The copies make no sense.
    #[error("the copies make no sense: {0}")]
    Plan(#[source] PlanError),
    /// The lease does not allow the read.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Nobody answers at the source's address.
    #[error("cannot connect to {0} for KV blocks")]
    Connect(String, #[source] io::Error),
    /// The connection broke, before or in the middle of an answer.
    #[error("the connection to {0} broke")]
    Broken(String, #[source] io::Error),
    /// No byte moved for `tcp::PROGRESS_MAX`.
    #[error("{0} fell silent")]
    Silent(String),
    /// The reader's deadline passed, or the source's for one read.
    #[error("the transfer from {0} took too long")]
    Deadline(String),
    /// The source, or this process, has no room for more transfers now.
    #[error("too many transfers from {0} at once")]
    Busy(String),
    /// One block is more than the source sends at once.
    #[error("a block of {block_bytes} bytes is more than {address} grants credit for")]
    OverCredit {
        /// The source's.
        address: String,
        /// Bytes of one block.
        block_bytes: usize,
    },
    /// The source sends these blocks, but does not let others read them for themselves.
    #[error("{0} does not lend its blocks this way")]
    NotLent(String),
    /// UCX did not move them.
    #[error("cannot read from {0} by UCX: {1}")]
    Ucx(String, #[source] UcxError),
    /// Bytes were changed on their way.
    #[error("a checksum of what came from {0} is wrong")]
    Checksum(String),
    /// A GPU did not do what was asked.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The other side does not speak our protocol, or speaks it wrongly.
    #[error("{address} broke the protocol: {what}")]
    Protocol {
        /// The source's.
        address: String,
        /// How.
        what: &'static str,
    },
}

impl From<PlanError> for TransferError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::LayoutMismatch => Self::LayoutMismatch,
            other => Self::Plan(other),
        }
    }
}

/// What a reader can do about a failed transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The same call may succeed now: the path failed, or was full for a moment.
    RetrySame,
    /// Another way to the same blocks, or another worker that has them, may do.
    RetryOther,
    /// The right to these blocks has ended: compute them.
    Recompute,
    /// The same will fail again: a defect, or workers that do not fit together. Compute the blocks,
    /// and say so to the operator.
    Fatal,
}

impl TransferError {
    /// What to do now.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Broken(..) | Self::Busy(_) | Self::Checksum(_) => Advice::RetrySame,
            Self::SourceGone(_) | Self::Connect(..) | Self::Silent(_) => Advice::RetryOther,
            Self::NotLent(_) | Self::Ucx(..) => Advice::RetryOther,
            Self::Cuda(error) if !error.is_device_lost() => Advice::RetryOther,
            Self::Lease(LeaseError::NotAnnounced) => Advice::Fatal,
            Self::Lease(_) | Self::Deadline(_) => Advice::Recompute,
            Self::LayoutMismatch | Self::Plan(_) | Self::Cuda(_) => Advice::Fatal,
            Self::OverCredit { .. } | Self::Protocol { .. } => Advice::Fatal,
        }
    }
}
