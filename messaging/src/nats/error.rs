//! Why there is no network. Each is one sentence for whoever started the process.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a NATS server will not do. Never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The URL or another option cannot be read.
    #[error("cannot use the NATS URL '{url}': {reason}; write it as nats://host:port")]
    BadUrl {
        /// Without user and password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An option is not usable.
    #[error("cannot use the NATS option {option}: {reason}")]
    BadOption {
        /// The field of `NatsOptions`.
        option: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A file with a secret or a certificate cannot be read.
    #[error("cannot read the {what} {}: {reason}", path.display())]
    BadFile {
        /// What the file should hold.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// Nobody answered in time.
    #[error(
        "cannot reach a NATS server at {address} for {} s ({reason}); start one, or correct the address",
        waited.as_secs_f32()
    )]
    Unreachable {
        /// Without user and password.
        address: String,
        /// How long it was tried.
        waited: Duration,
        /// What happened last.
        reason: String,
    },
    /// The server does not let us in.
    #[error(
        "the NATS server at {address} refuses these credentials; give the user and password, token, nkey or credentials file that it knows"
    )]
    Refused {
        /// Without user and password.
        address: String,
    },
    /// No TLS connection comes about.
    #[error(
        "no TLS connection to the NATS server at {address} ({reason}); check the CA and client certificates, and whether the server speaks TLS"
    )]
    Tls {
        /// Without user and password.
        address: String,
        /// What TLS says.
        reason: String,
    },
    /// The server lacks what the registry needs.
    #[error(
        "the NATS server at {address} is version {version}, and 2.11 or newer is needed; upgrade it"
    )]
    TooOld {
        /// Without user and password.
        address: String,
        /// What it says it is.
        version: String,
    },
    /// The server has no store for the registry.
    #[error(
        "the NATS server at {address} has no JetStream for this account; start it with -js, or enable JetStream for the account"
    )]
    NoJetStream {
        /// Without user and password.
        address: String,
    },
    /// The registry's bucket cannot be made or used.
    #[error("cannot use the registry bucket '{bucket}' of the NATS server at {address}: {reason}")]
    Bucket {
        /// Without user and password.
        address: String,
        /// Its name.
        bucket: String,
        /// What the server says, and what to do.
        reason: String,
    },
}

impl NetworkError {
    /// Whether the caller's options are at fault, not a server.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::BadUrl { .. } | Self::BadOption { .. } | Self::BadFile { .. })
    }

    pub(crate) fn unreadable(
        what: &'static str,
        path: &Path,
        reason: &(dyn std::error::Error + 'static),
    ) -> Self {
        Self::BadFile { what, path: path.to_path_buf(), reason: reason.to_string() }
    }
}
