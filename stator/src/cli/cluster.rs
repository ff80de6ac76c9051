//! Arguments of the components of a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ClientArgs, EngineArgs};

/// Arguments of `gateway`.
#[derive(Clone, Debug, Args)]
pub struct GatewayArgs {
    /// Who it is and where it belongs.
    #[command(flatten)]
    pub component: ComponentArgs,

    /// Address of the OpenAI API, and of /health, /health/ready and /metrics
    #[arg(long, env = "STATOR_LISTEN", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// Who may ask, and how slowly.
    #[command(flatten)]
    pub clients: ClientArgs,

    /// How it shows itself to workers, and which it believes.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Arguments of `router`.
#[derive(Clone, Debug, Args)]
pub struct RouterArgs {
    /// Who it is and where it belongs.
    #[command(flatten)]
    pub component: ComponentArgs,

    /// Where people and Prometheus look.
    #[command(flatten)]
    pub admin: AdminArgs,

    /// How it shows itself to workers, and which it believes.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Arguments of `prefill-worker` and `decode-worker`.
#[derive(Clone, Debug, Args)]
pub struct WorkerArgs {
    /// Who it is and where it belongs.
    #[command(flatten)]
    pub component: ComponentArgs,

    /// Model: a directory in Hugging Face layout (config.json, tokenizer.json, *.safetensors), or a
    /// .gguf file; the bundled demo model if absent
    #[arg(long, env = "STATOR_MODEL", value_name = "MODEL")]
    pub model: Option<String>,

    /// Name that clients put into `model`; the name of its directory or file if absent
    #[arg(long, env = "STATOR_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// Where it is reached.
    #[command(flatten)]
    pub data: DataArgs,

    /// Where people and Prometheus look.
    #[command(flatten)]
    pub admin: AdminArgs,

    /// What computes.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Arguments of every component.
#[derive(Clone, Debug, Args)]
pub struct ComponentArgs {
    /// NATS server that joins the cluster: nats://[user:password@]host:port, several with commas
    #[arg(long, env = "STATOR_NATS", value_name = "URL")]
    pub nats: String,

    /// How to get into it.
    #[command(flatten)]
    pub login: NatsArgs,

    /// Name of this component, of letters, digits, '-' and '_'; its role and random digits if
    /// absent
    #[arg(long, env = "STATOR_NAME")]
    pub name: Option<String>,

    /// Seconds that running requests have after SIGTERM or Ctrl-C
    #[arg(long, env = "STATOR_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    pub drain_timeout: u64,

    /// Allow addresses other than loopback without TLS or keys: the network protects them
    #[arg(long, env = "STATOR_INSECURE")]
    pub insecure: bool,

    /// Breaks something on purpose, so that tests can show that they would notice
    #[arg(long, value_enum, hide = true)]
    pub test_defect: Option<TestDefect>,
}

/// What a component does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TestDefect {
    /// A gateway repeats a token of an answer that migrates.
    BrokenMigration,
    /// A prefill worker sends a wrong byte in some KV blocks, with the right checksum for it.
    CorruptBlock,
}

/// How to get into a NATS server.
#[derive(Clone, Debug, Default, Args)]
pub struct NatsArgs {
    /// User of the NATS server, where it is not in the URL
    #[arg(long, env = "STATOR_NATS_USER", value_name = "USER")]
    pub nats_user: Option<String>,

    /// File with that user's password
    #[arg(long, env = "STATOR_NATS_PASSWORD_FILE", value_name = "FILE", requires = "nats_user")]
    pub nats_password_file: Option<PathBuf>,

    /// File with the seed of an nkey (SU…)
    #[arg(long, env = "STATOR_NATS_NKEY", value_name = "FILE")]
    pub nats_nkey: Option<PathBuf>,

    /// Credentials file (.creds)
    #[arg(long, env = "STATOR_NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,

    /// PEM file of the authority that signed the NATS server's certificate; makes TLS a must
    #[arg(long, env = "STATOR_NATS_TLS_CA", value_name = "FILE")]
    pub nats_tls_ca: Option<PathBuf>,

    /// Seconds for which a NATS server that cannot be reached at the start is tried again
    #[arg(long, env = "STATOR_NATS_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    pub nats_connect_timeout: u64,

    /// Name of the cluster; those of other names on the same NATS server do not see each other
    #[arg(long, env = "STATOR_CLUSTER", value_name = "NAME", default_value = "stator")]
    pub cluster: String,
}

/// TLS between components, for requests and tokens.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsArgs {
    /// PEM file of this component's certificate for TLS between components
    #[arg(long, env = "STATOR_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file of its private key
    #[arg(long, env = "STATOR_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// PEM file of the authority that signs the components' certificates; with it, each side of a
    /// connection must show one
    #[arg(long, env = "STATOR_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
}

/// Where a worker is reached.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Address of the data plane, for requests and tokens; port 0 is a free one
    #[arg(long, env = "STATOR_DATA_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub data_listen: SocketAddr,

    /// Address from which other workers read KV blocks; a free port of --data-listen's host if
    /// absent
    #[arg(long, env = "STATOR_KV_LISTEN", value_name = "ADDR")]
    pub kv_listen: Option<SocketAddr>,

    /// HOST or HOST:PORT under which others reach the data plane, and HOST the KV blocks; the
    /// address that it listens on if absent
    #[arg(long, env = "STATOR_ADVERTISE", value_name = "HOST")]
    pub advertise: Option<String>,

    /// HOST or HOST:PORT under which others reach the KV blocks, where --advertise does not say
    #[arg(long, env = "STATOR_ADVERTISE_KV", value_name = "HOST")]
    pub advertise_kv: Option<String>,

    /// Whether KV blocks move by UCX, which is what RDMA needs; the network must be trusted with
    /// them
    #[arg(long, env = "STATOR_UCX", value_enum, default_value_t = UcxMode::Off, value_name = "WHEN")]
    pub ucx: UcxMode,

    /// How it shows itself to others, and whom it believes.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// When KV blocks move by UCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UcxMode {
    /// Never: UCX opens network devices without authentication or encryption
    Off,
    /// Where this host has an RDMA device and UCX is installed
    Auto,
    /// Always; without UCX the worker does not start
    On,
}

/// Where people and Prometheus look.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// Address of /health, /health/ready and /metrics; port 0 is a free one
    #[arg(long, env = "STATOR_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
}
