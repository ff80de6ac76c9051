//! What the caller of a pull is told.

use std::io::{Error, ErrorKind};

use protocol::WorkerLife;

use super::client::Failure;
use super::stream::Broken;
use super::wire::{Refusal, WireError};
use crate::{LeaseError, TransferError};

/// Why there is no connection.
pub(super) fn not_connected(failure: Failure, address: &str) -> TransferError {
    let at = address.to_string();
    match failure {
        Failure::Broken(Broken::Silent) => {
            TransferError::Connect(at, Error::new(ErrorKind::TimedOut, "it does not answer"))
        }
        Failure::Broken(Broken::Io(error)) => TransferError::Connect(at, error),
        Failure::Broken(Broken::Wire(error)) => broken_protocol(error, at),
        Failure::Plan(error) => error.into(),
        Failure::Cuda(error) => error.into(),
        // All that is refused before anything was asked for.
        Failure::Refused(_) | Failure::OverCredit => TransferError::Busy(at),
    }
}

/// Why a pull failed on a connection.
pub(super) fn failed(
    failure: Failure,
    address: &str,
    worker: &WorkerLife,
    block_bytes: usize,
) -> TransferError {
    let address = address.to_string();
    match failure {
        Failure::Broken(Broken::Silent) => TransferError::Silent(address),
        Failure::Broken(Broken::Io(error)) => TransferError::Broken(address, error),
        Failure::Broken(Broken::Wire(error)) => broken_protocol(error, address),
        Failure::OverCredit => TransferError::OverCredit { address, block_bytes },
        Failure::Plan(error) => error.into(),
        Failure::Cuda(error) => error.into(),
        Failure::Refused(refusal) => refused(refusal, address, worker),
    }
}

fn refused(refusal: Refusal, address: String, worker: &WorkerLife) -> TransferError {
    match refusal {
        Refusal::Busy => TransferError::Busy(address),
        Refusal::SourceGone => TransferError::SourceGone(worker.clone()),
        Refusal::LayoutMismatch => TransferError::LayoutMismatch,
        Refusal::LeaseUnknown => LeaseError::Unknown.into(),
        Refusal::LeaseExpired => LeaseError::Expired.into(),
        Refusal::NotAnnounced => LeaseError::NotAnnounced.into(),
        Refusal::NotLent => TransferError::NotLent(address),
        Refusal::OverCredit => {
            let what = "it says that it was asked for more than it has or grants";
            TransferError::Protocol { address, what }
        }
    }
}

fn broken_protocol(error: WireError, address: String) -> TransferError {
    match error {
        WireError::Checksum => TransferError::Checksum(address),
        WireError::Malformed(what) => TransferError::Protocol { address, what },
    }
}
