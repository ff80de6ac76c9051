//! Why a command did not begin, or ended by itself.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;

use engine::LoadError;
use gateway::CardError;
use messaging::{NetworkError, TlsError};
use tokio::task::JoinError;
use worker::{StartError, WorkerError};

use crate::exit::Exit;

/// Why a command did not begin, or ended by itself. `Display` is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The arguments are wrong.
    #[error("{0}")]
    Arguments(String),
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The model's tokenizer or chat template cannot be used.
    #[error("MODEL {path} cannot be served: {source}; download the model again or convert it anew")]
    Card {
        /// The directory.
        path: String,
        /// What is wrong with it.
        source: CardError,
    },
    /// The cluster has a worker that this one does not go with.
    #[error("{0}")]
    Refused(String),
    /// The NATS server cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A TLS file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; stop what uses it or choose another {flag}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// The argument that said so.
        flag: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The system refuses memory, threads or signals.
    #[error("the system refuses what serving needs: {0}")]
    Resources(#[from] std::io::Error),
    /// A worker does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A component ended by itself.
    #[error("a component failed: {0}")]
    Component(String),
    /// A component that was asked is not there, or not ready.
    #[error("{0}")]
    Unavailable(String),
}

impl CommandError {
    /// The command's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Model(LoadError::Device { .. }) => Exit::Unavailable,
            Self::Arguments(_) | Self::Model(_) | Self::Card { .. } => Exit::Usage,
            Self::Refused(_) | Self::Tls(_) => Exit::Usage,
            Self::Network(error) if error.is_usage() => Exit::Usage,
            Self::Network(_) | Self::Unavailable(_) => Exit::Unavailable,
            Self::Listen { .. } | Self::Resources(_) | Self::Start(_) => Exit::Unavailable,
            Self::Component(_) => Exit::Internal,
        }
    }

    /// How a component ended that should not have.
    pub fn of_component<E: Error>(name: &str, ended: Result<Result<(), E>, JoinError>) -> Self {
        Self::Component(match ended {
            Ok(Ok(())) => format!("{name} ended"),
            Ok(Err(error)) => match error.source() {
                Some(source) => format!("{name}: {error} ({source})"),
                None => format!("{name}: {error}"),
            },
            Err(error) => format!("{name}: {error}"),
        })
    }

    /// How a component's task ended that has no error of its own and should not have ended.
    pub fn of_task(name: &str, ended: Result<(), JoinError>) -> Self {
        Self::of_component(name, ended.map(Ok::<(), Infallible>))
    }

    /// How a worker ended that should not have.
    pub fn of_worker(name: &str, ended: Result<Result<(), WorkerError>, JoinError>) -> Self {
        match ended {
            Ok(Err(WorkerError::Refused(sentence))) => Self::Refused(sentence),
            Ok(Err(WorkerError::Listen(error))) => Self::Unavailable(format!(
                "cannot listen for the data plane: {error}; choose another --data-listen"
            )),
            ended => Self::of_component(name, ended),
        }
    }
}
