//! An agent as a child process: how it is started and given its pool, and how it surely ends.

use std::ffi::OsString;
use std::io::{self, IoSlice, stderr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::UcxError;
use super::frames::Request;
use crate::HostMemory;

/// What UCX does when it crashes.
const HANDLE_ERRORS: &str = "UCX_HANDLE_ERRORS";

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
    pub fn start(launch: &Launch, memory: &HostMemory) -> Result<(Self, UnixStream), UcxError> {
        let file = memory.file().ok_or(UcxError::NotShared)?;
        let (ours, theirs) = UnixStream::pair().map_err(UcxError::Start)?;
        let process = launch.spawn(theirs).map_err(UcxError::Start)?;
        let process = Self(Mutex::new(process));
        let bytes = (memory.blocks() * memory.block_bytes()) as u64;
        let ended = |_| UcxError::Unusable("the UCX agent's process ended at once".into());
        send_pool(&ours, file, bytes).map_err(ended)?;
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
    fn spawn(&self, input: UnixStream) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        // An agent that crashes ends at once: nobody waits for a debugger or a stack trace.
        if std::env::var_os(HANDLE_ERRORS).is_none() {
            command.env(HANDLE_ERRORS, "none");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // UCX logs to standard output, which is the worker's to use.
        command.stdin(OwnedFd::from(input)).stdout(Stdio::from(stderr())).spawn()
    }
}

/// The first frame, with the pool's file.
fn send_pool(socket: &UnixStream, file: &OwnedFd, bytes: u64) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    let frame = Request::Pool { bytes }.encode();
    sendmsg(socket, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
