//! Whether a worker's KV blocks move by UCX, and the agent that moves them.

use std::path::Path;

use kv_transfer::KvMemory;
use kv_transfer::ucx::{Agent, Launch};

use crate::cli::{UcxMode, WorkerArgs};
use crate::error::CommandError;

/// Where Linux lists InfiniBand and RoCE devices.
const RDMA_DEVICES: &str = "/sys/class/infiniband";

/// What tells UCX which network devices it may use.
const NET_DEVICES: &str = "UCX_NET_DEVICES";

/// The one that others do not reach.
const LOOPBACK: &str = "lo";

/// The name of the command that is an agent.
const COMMAND: &str = "ucx-agent";

/// What is to become of UCX.
pub enum Plan {
    /// Nobody asked for it.
    Off,
    /// There is none, for this reason.
    Without(String),
    /// An agent is started.
    Start {
        /// So.
        launch: Launch,
        /// Whether the worker does not start without.
        is_required: bool,
    },
}

/// What became of it.
#[derive(Default)]
pub struct Started {
    /// The agent, if there is one.
    pub agent: Option<Agent>,
    /// A line of the start message; empty where nobody asked.
    pub line: String,
}

/// Decides before anything is opened. Errors: nothing protects what UCX would open.
pub fn check(arguments: &WorkerArgs) -> Result<Plan, CommandError> {
    let (mode, insecure) = (arguments.data.ucx, arguments.component.insecure);
    let why_not = match mode {
        UcxMode::Off => return Ok(Plan::Off),
        UcxMode::Auto if !has_devices(Path::new(RDMA_DEVICES)) => Some("no RDMA device is here"),
        UcxMode::Auto if !insecure => Some("its network is not said to be trusted (--insecure)"),
        UcxMode::Auto | UcxMode::On => None,
    };
    if let Some(why_not) = why_not {
        return Ok(Plan::Without(why_not.into()));
    }
    let mut environment = Vec::new();
    if !insecure {
        let listen = arguments.data.kv_listen.unwrap_or(arguments.data.data_listen);
        let names_others = std::env::var(NET_DEVICES).is_ok_and(|devices| devices != LOOPBACK);
        if !listen.ip().is_loopback() || names_others {
            return Err(CommandError::Arguments(
                "UCX opens this host's network devices to anyone who reaches them, unencrypted; \
                 add --insecure if your network protects it, or leave --ucx out"
                    .into(),
            ));
        }
        environment.push((NET_DEVICES.into(), LOOPBACK.into()));
    }
    let program = std::env::current_exe()?;
    let launch = Launch { program, arguments: vec![COMMAND.into()], environment };
    Ok(Plan::Start { launch, is_required: mode == UcxMode::On })
}

impl Plan {
    /// Whether an agent is to be started.
    pub fn is_start(&self) -> bool {
        matches!(self, Self::Start { .. })
    }

    /// Starts the agent. Errors: it is required, and cannot be used here.
    pub async fn start(self, memory: &KvMemory) -> Result<Started, CommandError> {
        let (launch, is_required) = match self {
            Self::Off => return Ok(Started::default()),
            Self::Without(why_not) => return Ok(Started::without(&why_not)),
            Self::Start { launch, is_required } => (launch, is_required),
        };
        match Agent::start(memory, launch).await {
            Ok(agent) => {
                Ok(Started { agent: Some(agent), line: "  ucx   moves KV blocks\n".into() })
            }
            Err(error) if is_required => Err(CommandError::Unavailable(format!(
                "--ucx on, but {}; or leave --ucx out",
                telling(&error)
            ))),
            Err(error) => Ok(Started::without(&telling(&error))),
        }
    }
}

impl Started {
    fn without(why_not: &str) -> Self {
        Self { agent: None, line: format!("  ucx   moves nothing: {why_not}\n") }
    }
}

fn telling(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {source}"),
    }
}

fn has_devices(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut devices| devices.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_entries_of_the_systems_directory() {
        let directory = std::env::temp_dir().join(format!("stator-rdma-{}", std::process::id()));
        assert!(!has_devices(&directory));
        std::fs::create_dir_all(&directory).unwrap();
        assert!(!has_devices(&directory));
        std::fs::write(directory.join("mlx5_0"), "").unwrap();
        assert!(has_devices(&directory));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
