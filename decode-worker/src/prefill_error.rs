//! Why a handoff fails.

use kv_transfer::TransferError;
use messaging::ConnectError;
use tonic::{Code, Status};
use worker::HostError;

/// Why the prompt has to be computed here after all.
#[derive(Debug, thiserror::Error)]
pub enum PrefillError {
    /// No room to receive the blocks.
    #[error("cannot reserve blocks: {0}")]
    Reserve(#[source] HostError),
    /// The engine did not take what came.
    #[error("cannot go on from the blocks that came: {0}")]
    Activate(#[source] HostError),
    /// The prefill worker cannot be reached.
    #[error("cannot reach the prefill worker")]
    Connect(#[source] ConnectError),
    /// It refused, or its stream broke.
    #[error("the prefill worker answered: {}", .0.message())]
    Call(#[from] Status),
    /// Nothing is heard of it.
    #[error("the prefill worker fell silent")]
    Silent,
    /// Its engine is stuck in a step.
    #[error("the prefill worker's engine hangs")]
    Hung,
    /// It is there, and the prompt gets no further.
    #[error("the prefill worker does not come to this prompt")]
    Standstill,
    /// What it said makes no sense.
    #[error("the prefill worker broke the protocol: {0}")]
    Protocol(&'static str),
    /// Blocks could not be read.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The lease was not alive throughout.
    #[error("the lease ended before the blocks were read")]
    LeaseEnded,
    /// A copy was cut short by a defect.
    #[error("a block copy was cut short")]
    Copy,
}

impl PrefillError {
    /// Whether this is what a full worker does, and nothing is wrong.
    pub fn is_ordinary(&self) -> bool {
        match self {
            Self::Reserve(HostError::Refused(_)) | Self::Standstill => true,
            Self::Call(status) => status.code() == Code::ResourceExhausted,
            _ => false,
        }
    }

    /// Whether others had better not be sent to that worker either.
    pub fn is_suspicious(&self) -> bool {
        matches!(self, Self::Silent | Self::Hung | Self::Connect(_))
    }

    /// Whether the connection may be broken.
    pub fn doubts_connection(&self) -> bool {
        match self {
            Self::Silent | Self::Hung => true,
            Self::Call(status) => matches!(status.code(), Code::Unavailable | Code::Unknown),
            _ => false,
        }
    }
}
