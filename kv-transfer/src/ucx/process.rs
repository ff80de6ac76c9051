//! An agent as a child process: how it is started and given its pool, and how it surely ends.

use std::ffi::OsString;
use std::io::{self, IoSlice, stderr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::UcxError;
use super::frames::{Place, Request};
use crate::KvMemory;

/// How UCX works, unless the environment says otherwise. An agent that crashes ends at once: nobody
/// waits for a debugger or a stack trace. Over tcp it copies in pieces, which are small by its own
/// default: larger ones made it twice as fast.
const DEFAULTS: [(&str, &str); 3] =
    [("UCX_HANDLE_ERRORS", "none"), ("UCX_TCP_TX_SEG_SIZE", "64k"), ("UCX_TCP_RX_SEG_SIZE", "64k")];

/// What tells UCX by which transports it may move bytes.
pub const TRANSPORTS: &str = "UCX_TLS";

/// Those of network devices, for GPUs: what goes between GPUs of one host by other ways does not here.
pub const FOR_GPUS_BY_NETWORK: &str = "^cuda_ipc,gdr_copy";

/// How to start a program that calls `run_agent`. It inherits the environment, and with it whatever
/// configures UCX.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What is run.
    pub program: PathBuf,
    /// With these arguments.
    pub arguments: Vec<OsString>,
    /// Set for it beside what it inherits.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running agent, which is killed when this is dropped.
pub struct Process(Mutex<Child>);

impl Process {
    /// Starts one, and hands it the memory. Returns also the worker's end of their socket. Errors:
    /// the system's; the memory is not shared.
    pub fn start(launch: &Launch, memory: &KvMemory) -> Result<(Self, UnixStream), UcxError> {
        let (file, place) = match memory {
            KvMemory::Host(memory) => {
                (Some(memory.file().ok_or(UcxError::NotShared)?), Place::File)
            }
            KvMemory::Cuda(memory) => {
                let lent = memory.lend().map_err(|error| UcxError::Unusable(error.to_string()))?;
                let ordinal = memory.device().ordinal();
                (None, Place::Gpu { ordinal, handle: lent.memory.0 })
            }
        };
        let (ours, theirs) = UnixStream::pair().map_err(UcxError::Start)?;
        let transports = (place != Place::File).then_some((TRANSPORTS, FOR_GPUS_BY_NETWORK));
        let process = launch.spawn(theirs, transports).map_err(UcxError::Start)?;
        let process = Self(Mutex::new(process));
        let bytes = (memory.blocks() * memory.block_bytes()) as u64;
        let ended = |_| UcxError::Unusable("the UCX agent's process ended at once".into());
        send_pool(&ours, file, &Request::Pool { bytes, place }).map_err(ended)?;
        ours.set_nonblocking(true).map_err(UcxError::Start)?;
        Ok((process, ours))
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.0.lock().id()
    }

    /// Ends it, if it has not ended yet. Afterwards it writes nothing any more, nor does any device
    /// for it. Waits for the system to take it apart.
    pub fn kill(&self) {
        let mut child = self.0.lock();
        let _gone = child.kill();
        let _reaped = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Launch {
    fn spawn(
        &self,
        input: UnixStream,
        more: Option<(&'static str, &'static str)>,
    ) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command.envs(
            DEFAULTS.into_iter().chain(more).filter(|(name, _)| std::env::var_os(name).is_none()),
        );
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Ctrl-C is for the worker, which drains with its agent.
        command.process_group(0);
        // UCX logs to standard output, which is the worker's to use.
        command.stdin(OwnedFd::from(input)).stdout(Stdio::from(stderr())).spawn()
    }
}

/// The first frame, with the pool's file if it is one.
fn send_pool(socket: &UnixStream, file: Option<&OwnedFd>, pool: &Request) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd> = file.iter().map(|file| file.as_fd()).collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    sendmsg(socket, &[IoSlice::new(&pool.encode())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
