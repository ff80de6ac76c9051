//! What each member of the cluster is for, and how it is started.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cluster::{ClusterConfig, Defect};
use crate::proxies::Proxies;

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `nats-server`
    Nats,
    /// `stator router`
    Router,
    /// `stator prefill-worker`
    PrefillWorker,
    /// `stator decode-worker`
    DecodeWorker,
    /// `stator gateway`
    Gateway,
}

/// How a process is started.
pub struct CommandLine {
    /// What is run.
    pub program: PathBuf,
    /// With which arguments.
    pub arguments: Vec<OsString>,
}

impl Role {
    /// Whether it has an engine.
    pub fn is_worker(self) -> bool {
        matches!(self, Self::PrefillWorker | Self::DecodeWorker)
    }

    /// Its `stator` command, which also begins its name.
    pub fn command(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Router => "router",
            Self::PrefillWorker => "prefill-worker",
            Self::DecodeWorker => "decode-worker",
            Self::Gateway => "gateway",
        }
    }

    /// The addresses that it prints when it is ready.
    pub fn addresses(self) -> &'static [&'static str] {
        match self {
            Self::Nats => &[],
            Self::Router => &["admin"],
            Self::PrefillWorker => &["data", "kv", "admin"],
            Self::DecodeWorker => &["data", "admin"],
            Self::Gateway => &["API"],
        }
    }

    /// The command line of a member of this role that is called `name`.
    pub fn command_line(
        self,
        name: &str,
        config: &ClusterConfig,
        proxies: &Proxies,
        nats: SocketAddr,
    ) -> CommandLine {
        match self {
            Self::Nats => CommandLine {
                program: config.nats_server.clone(),
                arguments: nats_arguments(config, nats),
            },
            _ => CommandLine {
                program: config.stator.clone(),
                arguments: stator_arguments(self, name, config, proxies),
            },
        }
    }
}

fn nats_arguments(config: &ClusterConfig, address: SocketAddr) -> Vec<OsString> {
    let port = address.port().to_string();
    let store = config.logs.join("nats-store").into_os_string();
    let arguments = ["-a", "127.0.0.1", "-p", &port, "-js", "-sd"].map(OsString::from);
    arguments.into_iter().chain([store]).collect()
}

fn stator_arguments(
    role: Role,
    name: &str,
    config: &ClusterConfig,
    proxies: &Proxies,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![role.command().into(), "--name".into(), name.into()];
    let mut push = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    if let Some(nats) = &proxies.nats {
        push(&["--nats", &format!("nats://{}", nats.address)]);
    }
    if role == Role::Gateway {
        push(&["--listen", "127.0.0.1:0"]);
    }
    if role.is_worker() {
        push(&["--model", &config.model.display().to_string(), "--model-name", &config.model_name]);
        push(&config.engine.iter().map(String::as_str).collect::<Vec<_>>());
    }
    if let (Some(data), Some(kv)) = (&proxies.data, &proxies.kv) {
        push(&["--advertise", &data.address.to_string()]);
        push(&["--advertise-kv", &kv.address.to_string()]);
    }
    if let Some(defect) = config.defect.filter(|defect| defect.is_of(role)) {
        push(&["--test-defect", defect.argument()]);
    }
    arguments
}

impl Defect {
    fn is_of(self, role: Role) -> bool {
        match self {
            Self::BrokenMigration => role == Role::Gateway,
            Self::CorruptBlock => role == Role::PrefillWorker,
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::BrokenMigration => "broken-migration",
            Self::CorruptBlock => "corrupt-block",
        }
    }
}
