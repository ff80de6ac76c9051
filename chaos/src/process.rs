//! One process of the cluster: started, read, signalled, ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::journal::Journal;
use crate::sockets;

/// From the start of a process to its being ready.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// From a SIGTERM to the end of a process that finishes what it has.
const END_DEADLINE: Duration = Duration::from_secs(45);

/// A running process. It is killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    addresses: watch::Receiver<Addresses>,
    log: PathBuf,
    reader: JoinHandle<()>,
}

/// What a process said on its standard output: `data  127.0.0.1:40124` and the like, by first word.
pub type Addresses = BTreeMap<String, SocketAddr>;

impl Process {
    /// Starts a program whose log goes to a file of this name in `logs`, and whose lines of note go
    /// to the journal. Errors: it cannot be started.
    pub fn start(
        name: &str,
        mut command: Command,
        logs: &Path,
        journal: &Arc<Journal>,
    ) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let program = command.as_std().get_program().display().to_string();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let id = child.id().ok_or_else(|| anyhow!("{program} has no process id"))?;
        let pid = Pid::from_raw(id as i32).ok_or_else(|| anyhow!("{program} has the id 0"))?;
        let (said, addresses) = watch::channel(Addresses::new());
        let stdout = child.stdout.take().ok_or_else(|| anyhow!("{program} has no output"))?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow!("{program} has no output"))?;
        tokio::spawn(read_addresses(stdout, said));
        let reader = tokio::spawn(read_log(stderr, name.to_string(), file, journal.clone()));
        Ok(Self { name: name.into(), child, pid, addresses, log, reader })
    }

    /// Waits until the process has said all of these addresses. Errors: it ended before, or takes
    /// too long.
    pub async fn addresses(&mut self, expected: &[&str]) -> Result<Addresses> {
        let mut addresses = self.addresses.clone();
        let all_said =
            addresses.wait_for(|said| expected.iter().all(|key| said.contains_key(*key)));
        match tokio::time::timeout(READY_DEADLINE, all_said).await {
            Ok(Ok(said)) => Ok(said.clone()),
            Ok(Err(_closed)) => {
                bail!("{} ended before it was ready; see {}", self.name, self.log.display())
            }
            Err(_late) => bail!(
                "{} was not ready after {READY_DEADLINE:?}; see {}",
                self.name,
                self.log.display()
            ),
        }
    }

    /// Sends a signal. One to a process that has ended goes nowhere.
    pub fn signal(&self, signal: Signal) {
        if self.child.id().is_some() {
            let _ended = kill_process(self.pid, signal);
        }
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL);
        self.end(END_DEADLINE).await.map(|_| ())
    }

    /// SIGTERM, and waits for the end. Errors: another exit code than 0, or it takes too long.
    pub async fn terminate(mut self) -> Result<()> {
        self.signal(Signal::TERM);
        let status = self.end(END_DEADLINE).await?;
        match status.code() {
            Some(0) => Ok(()),
            _ => {
                bail!("{} ended with {status} after SIGTERM; see {}", self.name, self.log.display())
            }
        }
    }

    async fn end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(deadline, self.child.wait()).await;
        let ended = ended.map_err(|_| anyhow!("{} did not end within {deadline:?}", self.name))?;
        // The log is whole before anyone reads it.
        let _cut = tokio::time::timeout(Duration::from_secs(1), &mut self.reader).await;
        Ok(ended?)
    }

    /// How the process ended, if it did by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Whether one of these connections is its own.
    pub fn has_any(&self, own_ends: &[SocketAddr]) -> bool {
        sockets::process_has_any(self.pid.as_raw_nonzero().get(), own_ends)
    }

    /// Memory in use, in bytes; `None` where the system does not say.
    pub fn resident_bytes(&self) -> Option<u64> {
        let path = format!("/proc/{}/statm", self.pid.as_raw_nonzero());
        let pages: u64 = std::fs::read_to_string(path).ok()?.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }
}

async fn read_addresses(stdout: impl AsyncRead + Unpin, said: watch::Sender<Addresses>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((key, address)) = parse_address(&line) {
            said.send_modify(|addresses| {
                addresses.insert(key, address);
            });
        }
    }
}

/// Reads `  API   http://127.0.0.1:8000/v1  (any API key)` and `  data  127.0.0.1:40124`.
fn parse_address(line: &str) -> Option<(String, SocketAddr)> {
    let mut words = line.strip_prefix("  ")?.split_whitespace();
    let (key, address) = (words.next()?, words.next()?);
    let address = address.trim_start_matches("http://").split('/').next()?;
    Some((key.to_string(), address.parse().ok()?))
}

async fn read_log(
    stderr: impl AsyncRead + Unpin,
    name: String,
    mut file: File,
    journal: Arc<Journal>,
) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        journal.hear(&name, &line);
        // A full disk loses lines of a log, not the run.
        let _lost = writeln!(file, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_ready_lines() {
        #[track_caller]
        fn check(line: &str, expected: Option<(&str, &str)>) {
            let expected = expected.map(|(key, address)| (key.into(), address.parse().unwrap()));
            assert_eq!(parse_address(line), expected, "{line:?}");
        }
        check("gateway gateway-77aa ready", None);
        check("  API   http://127.0.0.1:8000/v1", Some(("API", "127.0.0.1:8000")));
        check("  API   http://127.0.0.1:8000/v1  (any key)", Some(("API", "127.0.0.1:8000")));
        check("  data  127.0.0.1:40124", Some(("data", "127.0.0.1:40124")));
        check("  admin http://127.0.0.1:40126", Some(("admin", "127.0.0.1:40126")));
        check("  try   curl http://127.0.0.1:8000/v1/chat", None);
        check("", None);
    }

    #[tokio::test]
    async fn a_process_is_read_and_ended() {
        let logs = std::env::temp_dir();
        let journal = Arc::new(Journal::default());
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap 'exit 0' TERM; echo '  admin http://127.0.0.1:9/x'; while :; do sleep 0.05; done",
        ]);
        let name = format!("chaos-process-test-{}", std::process::id());
        let mut process = Process::start(&name, command, &logs, &journal).unwrap();
        let addresses = process.addresses(&["admin"]).await.unwrap();
        assert_eq!(addresses["admin"], "127.0.0.1:9".parse().unwrap());
        assert!(process.resident_bytes().unwrap() > 0);
        assert!(process.ended().is_none());
        process.terminate().await.unwrap();
        std::fs::remove_file(logs.join(format!("{name}.log"))).unwrap();
    }

    #[tokio::test]
    async fn an_early_end_is_an_error() {
        let name = format!("chaos-early-end-test-{}", std::process::id());
        let journal = Arc::new(Journal::default());
        let logs = std::env::temp_dir();
        let mut process = Process::start(&name, Command::new("false"), &logs, &journal).unwrap();
        let error = process.addresses(&["admin"]).await.unwrap_err();
        assert!(error.to_string().contains("ended before it was ready"), "{error}");
        std::fs::remove_file(logs.join(format!("{name}.log"))).unwrap();
    }
}
