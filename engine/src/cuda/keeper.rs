//! Weights once per GPU: a process of its own keeps them for all processes of a user that compute with
//! them there, and ends when nobody has for a while.
//!
//! Who needs weights connects to the keeper's socket, is told how to map them, and stays connected for
//! as long as it uses them. Where nobody listens, it starts a keeper, under a lock, so that there is
//! one. The socket's name is a hash of all that decides what the weights' bytes are; its directory is
//! the user's own. Memory is gone with the process that allocated it: whoever uses it notices by the
//! connection's end, and computes no more.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cuda_driver::{Allocation, Device, IpcHandle, Mapping};
use parking_lot::{Condvar, Mutex};

/// Processes that use weights at once; more have their own.
const USERS_MAX: usize = 64;
const HANDLE_BYTES: usize = size_of::<IpcHandle>();
/// What a keeper says first on its standard output when the weights are there.
const READY: &str = "ready";

/// How a keeper is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What is run, and calls `CudaModel::keep`.
    pub program: PathBuf,
    /// Its arguments, behind which the socket's path comes.
    pub arguments: Vec<OsString>,
    /// Where sockets are: a directory of this user's alone, made where it is missing.
    pub directory: PathBuf,
}

/// Weights that a keeper keeps.
pub struct Kept {
    memory: Mapping,
    connection: UnixStream,
    is_gone: Arc<AtomicBool>,
}

impl Kept {
    /// Finds or starts the keeper of this name. Errors: a sentence.
    pub fn find(device: &Arc<Device>, launch: &Launch, name: &str) -> Result<Self, String> {
        let cannot = |error: io::Error| {
            let directory = launch.directory.display();
            format!("weights cannot be shared by way of {directory}: {error}")
        };
        open_directory(&launch.directory).map_err(cannot)?;
        let socket = launch.directory.join(format!("{name}.sock"));
        if let Some((connection, handle)) = connect(&socket) {
            return Self::map(device, connection, handle);
        }
        let lock = File::create(lock_of(&socket)).map_err(cannot)?;
        lock.lock().map_err(cannot)?;
        // Somebody else may have started it meanwhile.
        let (connection, handle) = match connect(&socket) {
            Some(connected) => connected,
            None => {
                launch.start(&socket)?;
                connect(&socket).ok_or("the weights' keeper ended at once")?
            }
        };
        Self::map(device, connection, handle)
    }

    fn map(
        device: &Arc<Device>,
        connection: UnixStream,
        handle: IpcHandle,
    ) -> Result<Self, String> {
        let memory = Mapping::open(device, handle).map_err(|error| error.to_string())?;
        let is_gone = Arc::new(AtomicBool::new(false));
        let watched = connection.try_clone().map_err(|error| error.to_string())?;
        let watcher = Watcher { watched, is_gone: is_gone.clone() };
        let thread = std::thread::Builder::new().name("weights".into());
        thread.spawn(move || watcher.run()).map_err(|error| error.to_string())?;
        Ok(Self { memory, connection, is_gone })
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Whether their keeper has ended, and they with it.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The watcher's thread ends by it.
        let _closed = self.connection.shutdown(std::net::Shutdown::Both);
    }
}

/// Waits for a connection's end.
struct Watcher {
    watched: UnixStream,
    is_gone: Arc<AtomicBool>,
}

impl Watcher {
    fn run(mut self) {
        // A keeper says nothing more.
        let _end = self.watched.read(&mut [0]);
        self.is_gone.store(true, Ordering::Release);
    }
}

impl Launch {
    /// Starts a keeper and waits until it has the weights. It goes on when this process ends, by
    /// whatever signal.
    fn start(&self, socket: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(socket).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let started = command.spawn();
        let mut process =
            started.map_err(|error| format!("the weights' keeper does not start: {error}"))?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            // Without one it has ended, and said why on standard error, which is also ours.
            let _said = BufReader::new(output).read_line(&mut line);
        }
        if line.trim_end() == READY {
            return Ok(());
        }
        let _reaped = process.wait();
        Err("the weights' keeper ended before it had them; it said why above".into())
    }
}

/// Makes the directory. Errors: it is not this user's alone.
fn open_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let found = fs::symlink_metadata(directory)?;
    // SAFETY: it only asks.
    let is_ours = found.is_dir() && found.uid() == unsafe { libc::geteuid() };
    if !is_ours || found.mode() & 0o077 != 0 {
        return Err(io::Error::other("it is not a directory that only this user may open"));
    }
    Ok(())
}

fn lock_of(socket: &Path) -> PathBuf {
    socket.with_extension("lock")
}

/// Asks a keeper, if one listens and still has the weights.
fn connect(socket: &Path) -> Option<(UnixStream, IpcHandle)> {
    let mut connection = UnixStream::connect(socket).ok()?;
    let mut handle = [0; HANDLE_BYTES];
    connection.read_exact(&mut handle).ok()?;
    Some((connection, IpcHandle(handle)))
}

/// Who uses the weights.
struct Users {
    count: Mutex<usize>,
    changed: Condvar,
}

/// Keeps weights for whoever connects to the socket, until nobody has used them for `grace`. Errors:
/// the system's, or the driver does not share memory: a sentence.
pub fn keep(memory: &Allocation, socket: &Path, grace: Duration) -> Result<(), String> {
    let handle = memory.export().map_err(|error| error.to_string())?;
    let cannot = |error: io::Error| format!("cannot listen on {}: {error}", socket.display());
    // Of a keeper that was killed: whoever starts one holds the lock.
    let _left_over = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(cannot)?;
    let users = Arc::new(Users { count: Mutex::new(0), changed: Condvar::new() });
    let accepting = users.clone();
    let acceptor = std::thread::Builder::new().name("keeper".into());
    acceptor.spawn(move || accepting.accept(&listener, &handle)).map_err(cannot)?;
    let mut output = io::stdout();
    let said = writeln!(output, "{READY}").and_then(|()| output.flush());
    said.map_err(cannot)?;
    loop {
        users.wait_for_nobody(grace);
        // Who comes now waits for the lock, finds nobody, and starts another keeper.
        let lock = File::create(lock_of(socket)).map_err(cannot)?;
        lock.lock().map_err(cannot)?;
        if *users.count.lock() == 0 {
            return fs::remove_file(socket).map_err(cannot);
        }
    }
}

impl Users {
    /// Until there was nobody for so long.
    fn wait_for_nobody(&self, grace: Duration) {
        let mut count = self.count.lock();
        loop {
            while *count > 0 {
                self.changed.wait(&mut count);
            }
            if self.changed.wait_for(&mut count, grace).timed_out() && *count == 0 {
                return;
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener, handle: &IpcHandle) {
        for connection in listener.incoming().flatten() {
            let mut count = self.count.lock();
            if *count == USERS_MAX {
                continue;
            }
            let users = self.clone();
            let mut user = connection;
            let handle = *handle;
            let thread = std::thread::Builder::new().name("user".into());
            let served = thread.spawn(move || {
                let _told = user.write_all(&handle.0);
                // A user says nothing; its end is the end of the connection.
                let _end = user.read(&mut [0]);
                *users.count.lock() -= 1;
                users.changed.notify_all();
            });
            *count += usize::from(served.is_ok());
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_others_are_refused() {
        let directory = std::env::temp_dir().join(format!("stator-keeper-{}", std::process::id()));
        open_directory(&directory).unwrap();
        open_directory(&directory).unwrap();
        let mut permissions = fs::metadata(&directory).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        fs::set_permissions(&directory, permissions).unwrap();
        let refusal = open_directory(&directory).unwrap_err().to_string();
        assert!(refusal.contains("only this user"), "{refusal}");
        fs::remove_dir(&directory).unwrap();
    }
}
