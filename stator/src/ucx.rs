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

/// How an agent is to be started, if there is to be one.
pub struct Plan {
    launch: Launch,
    /// Whether the worker does not start without.
    is_required: bool,
}

/// Decides before anything is opened. Errors: nothing protects what UCX would open.
pub fn check(arguments: &WorkerArgs) -> Result<Option<Plan>, CommandError> {
    let (mode, insecure) = (arguments.data.ucx, arguments.component.insecure);
    let why_not = match mode {
        UcxMode::Off => return Ok(None),
        UcxMode::Auto if !has_devices(Path::new(RDMA_DEVICES)) => Some("no RDMA device is here"),
        UcxMode::Auto if !insecure => Some("its network is not said to be trusted (--insecure)"),
        UcxMode::Auto | UcxMode::On => None,
    };
    if let Some(why_not) = why_not {
        tracing::info!("KV blocks do not move by UCX: {why_not}");
        return Ok(None);
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
    Ok(Some(Plan { launch, is_required: mode == UcxMode::On }))
}

impl Plan {
    /// Starts the agent. Errors: it is required, and cannot be used here.
    pub async fn start(self, memory: &KvMemory) -> Result<Option<Agent>, CommandError> {
        match Agent::start(memory, self.launch.clone()).await {
            Ok(agent) => Ok(Some(agent)),
            Err(error) => self.without(&telling(&error)),
        }
    }

    fn without(&self, why_not: &str) -> Result<Option<Agent>, CommandError> {
        if self.is_required {
            return Err(CommandError::Unavailable(format!("--ucx on, but {why_not}")));
        }
        tracing::info!("KV blocks do not move by UCX: {why_not}");
        Ok(None)
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
