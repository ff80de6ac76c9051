//! A nats-server that can be killed, stopped and started again.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::binary::nats_server_binary;

/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Ports below those that systems give to outgoing connections, so that nobody takes a server's
/// port while it is down.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// What kind of server.
#[derive(Clone, Debug)]
pub struct NatsSettings {
    /// Whether it has JetStream, with its store in a temporary directory.
    pub jetstream: bool,
    /// Further text of its configuration file.
    pub config: String,
}

/// A running nats-server, on a port of its own of 127.0.0.1. It ends, and its store goes, on drop.
pub struct NatsServer {
    port: u16,
    directory: PathBuf,
    process: Option<Child>,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self { jetstream: true, config: String::new() }
    }
}

impl NatsSettings {
    /// A server without JetStream.
    pub fn without_jetstream() -> Self {
        Self { jetstream: false, ..Self::default() }
    }

    /// A server that asks for a user and password.
    pub fn with_password(user: &str, password: &str) -> Self {
        Self::with(format!("authorization {{ user: {user:?}, password: {password:?} }}"))
    }

    /// A server that asks for a token.
    pub fn with_token(token: &str) -> Self {
        Self::with(format!("authorization {{ token: {token:?} }}"))
    }

    /// A server that asks for the signature of an nkey, whose public part this is (`U…`).
    pub fn with_nkey(public_key: &str) -> Self {
        Self::with(format!("authorization {{ users: [ {{ nkey: {public_key} }} ] }}"))
    }

    /// A server that speaks TLS only, and with `client_ca` asks clients for a certificate. PEM
    /// files.
    pub fn with_tls(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Self {
        let client = client_ca.map(|ca| format!("ca_file: {ca:?}, verify: true"));
        let client = client.unwrap_or_default();
        Self::with(format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}, {client} }}"))
    }

    /// A server with further text in its configuration file.
    pub fn with(config: String) -> Self {
        Self { config, ..Self::default() }
    }
}

impl NatsServer {
    /// Starts a server with JetStream that asks for no credentials.
    pub fn start() -> Self {
        Self::start_with(NatsSettings::default())
    }

    /// Starts a server and waits until it answers.
    pub fn start_with(settings: NatsSettings) -> Self {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let port = free_port();
            let directory = std::env::temp_dir();
            let directory = directory.join(format!("nats-{}-{port}", std::process::id()));
            fs::create_dir_all(&directory).expect("a temporary directory");
            fs::write(directory.join("nats.conf"), config(&settings, port, &directory))
                .expect("the configuration can be written");
            let mut server = Self { port, directory, process: None };
            match server.launch() {
                Ok(()) => return server,
                // Another server may have taken the port meanwhile.
                Err(log) if log.contains("in use") && Instant::now() < deadline => {}
                Err(log) => panic!("nats-server does not start: {log}"),
            }
        }
    }

    /// `nats://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Ends the server at once, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the server can be killed");
            process.wait().expect("a killed server ends");
        }
    }

    /// Stops it without ending it: its connections stay, and nobody answers.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a stopped server go on.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Starts it again after a `kill` (or kills it first), with the same port and store, and waits
    /// until it answers.
    pub fn restart(&mut self) {
        self.kill();
        if let Err(log) = self.launch() {
            panic!("nats-server does not start again: {log}");
        }
    }

    /// Removes its store; of a killed server.
    pub fn lose_store(&mut self) {
        assert!(self.process.is_none(), "kill the server first");
        let store = self.directory.join("store");
        if store.exists() {
            fs::remove_dir_all(store).expect("the store can be removed");
        }
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("nats.log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the server runs");
        let process = Pid::from_child(process);
        kill_process(process, signal).expect("the server can be signalled");
    }

    /// The log where the server does not start.
    fn launch(&mut self) -> Result<(), String> {
        let log = File::options().create(true).append(true).open(self.directory.join("nats.log"));
        let log = log.map_err(|error| error.to_string())?;
        let process = Command::new(nats_server_binary())
            .arg("-c")
            .arg(self.directory.join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| error.to_string())?;
        self.process = Some(process);
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.answers() {
            let ended = self
                .process
                .as_mut()
                .is_none_or(|process| process.try_wait().is_ok_and(|status| status.is_some()));
            if ended || Instant::now() > deadline {
                return Err(self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether it greets who connects.
    fn answers(&self) -> bool {
        let Ok(stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _no_limit = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ended = process.kill();
            let _ended = process.wait();
        }
        let _kept = fs::remove_dir_all(&self.directory);
    }
}

fn config(settings: &NatsSettings, port: u16, directory: &Path) -> String {
    let store = directory.join("store");
    let jetstream = match settings.jetstream {
        true => format!("jetstream {{ store_dir: {store:?} }}\n"),
        false => String::new(),
    };
    format!("host: \"127.0.0.1\"\nport: {port}\n{jetstream}{}\n", settings.config)
}

fn free_port() -> u16 {
    loop {
        let random = RandomState::new().hash_one(std::process::id());
        let port = PORTS.start + (random % PORTS.len() as u64) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
