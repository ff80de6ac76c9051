//! Weights once per GPU: a process of its own keeps them for all processes of a user that compute with
//! them there, and ends when nobody has for a while.
//!
//! Who needs weights connects to the keeper's socket, is told how to map them, and stays connected for
//! as long as it uses them. Where nobody listens, it starts a keeper, under a lock, so that there is
//! one. The socket's name is a hash of all that decides what the weights' bytes are; its directory is
//! the user's own. CUDA does not say what becomes of mapped memory when the process that allocated it
//! ends: so whoever uses it notices by the connection's end, and computes no more.
//!
//! What is bounded: users (`USERS_MAX`; who comes later has weights of its own), and each wait for a
//! keeper (`START_MAX`, `ANSWER_MAX`).

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use cuda_driver::{Allocation, Device, IpcHandle, Mapping};
use parking_lot::{Condvar, Mutex};

/// Processes that use weights at once.
const USERS_MAX: usize = 64;
const HANDLE_BYTES: usize = size_of::<IpcHandle>();
/// How long a keeper may take to bring weights to the GPU: the largest models, from slow disks.
const START_MAX: Duration = Duration::from_secs(30 * 60);
/// How long it may take to answer who connects.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between two tries to take a connection where the system has no room for one.
const PAUSE: Duration = Duration::from_millis(100);
/// What a keeper says on its standard output when the weights are there.
const READY: &str = "ready";
/// What a keeper answers first.
const HERE: u8 = b'h';
const FULL: u8 = b'f';

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

/// What came of asking a keeper.
enum Answer {
    Kept(Kept),
    /// It has as many users as it takes.
    Full,
    /// There is none, or it is ending.
    Nobody,
}

impl Kept {
    /// Finds or starts the keeper of this name; nothing where it has too many users. Errors: a
    /// sentence.
    pub fn find(device: &Arc<Device>, launch: &Launch, name: &str) -> Result<Option<Self>, String> {
        let cannot = |error: io::Error| {
            let directory = launch.directory.display();
            format!(
                "weights cannot be shared by way of {directory}: {error} (or leave --share-weights out)"
            )
        };
        open_directory(&launch.directory).map_err(cannot)?;
        let socket = launch.directory.join(format!("{name}.sock"));
        // First without the lock, which a keeper that starts may hold for minutes.
        if let found @ (Answer::Kept(_) | Answer::Full) = Self::ask(device, &socket)? {
            return Ok(found.kept());
        }
        let lock = File::create(lock_of(&socket)).map_err(cannot)?;
        lock.lock().map_err(cannot)?;
        // Somebody else may have started it meanwhile.
        if let found @ (Answer::Kept(_) | Answer::Full) = Self::ask(device, &socket)? {
            return Ok(found.kept());
        }
        launch.start(&socket)?;
        match Self::ask(device, &socket)? {
            Answer::Nobody => Err("the weights' keeper ended at once".into()),
            found => Ok(found.kept()),
        }
    }

    fn ask(device: &Arc<Device>, socket: &Path) -> Result<Answer, String> {
        let Ok(mut connection) = UnixStream::connect(socket) else { return Ok(Answer::Nobody) };
        let (mut answer, mut handle) = ([0], [0; HANDLE_BYTES]);
        let told = connection
            .set_read_timeout(Some(ANSWER_MAX))
            .and_then(|()| connection.read_exact(&mut answer))
            .and_then(|()| match answer {
                [HERE] => connection.read_exact(&mut handle),
                _ => Ok(()),
            })
            .and_then(|()| connection.set_read_timeout(None));
        match (told, answer) {
            (Ok(()), [HERE]) => {}
            (Ok(()), [FULL]) => return Ok(Answer::Full),
            (Err(error), _) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(format!(
                    "the weights' keeper at {} does not answer; end it",
                    socket.display()
                ));
            }
            _ => return Ok(Answer::Nobody),
        }
        let memory = match Mapping::open(device, IpcHandle(handle)) {
            Ok(memory) => memory,
            // One that ends meanwhile has taken its memory along.
            Err(_) if is_closed(&connection) => return Ok(Answer::Nobody),
            Err(error) => return Err(format!("the weights cannot be shared: {error}")),
        };
        let is_gone = Arc::new(AtomicBool::new(false));
        let mut watched = connection.try_clone().map_err(|error| error.to_string())?;
        let tells = is_gone.clone();
        let watch = move || {
            // A keeper says nothing more.
            let _end = watched.read_exact(&mut [0]);
            tells.store(true, Ordering::Release);
        };
        let thread = std::thread::Builder::new().name("weights".into()).spawn(watch);
        thread.map_err(|error| error.to_string())?;
        Ok(Answer::Kept(Self { memory, connection, is_gone }))
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

/// Whether the other end of a connection on which nothing more is said has ended.
fn is_closed(mut connection: &UnixStream) -> bool {
    let looked = connection.set_nonblocking(true).and_then(|()| connection.read(&mut [0]));
    let _blocks_again = connection.set_nonblocking(false);
    !looked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl Answer {
    fn kept(self) -> Option<Kept> {
        match self {
            Self::Kept(kept) => Some(kept),
            Self::Full | Self::Nobody => None,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The watching thread ends by it.
        let _closed = self.connection.shutdown(std::net::Shutdown::Both);
    }
}

impl Launch {
    /// Starts a keeper and waits until it has the weights. It goes on when this process ends, by
    /// whatever signal. Errors: what it said.
    fn start(&self, socket: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(socket).process_group(0).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = command.spawn();
        let mut process =
            started.map_err(|error| format!("the weights' keeper does not start: {error}"))?;
        let (output, errors) = (process.stdout.take(), process.stderr.take());
        let (ready, is_ready) = mpsc::sync_channel(1);
        let process = Arc::new(Mutex::new(process));
        let waited = process.clone();
        let words = std::thread::spawn(move || last_words(errors));
        // Reads what it says, and reaps it when it ends: maybe long after this.
        std::thread::spawn(move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
            let is_ready = lines.map_while(Result::ok).any(|line| line == READY);
            let said = (!is_ready).then(|| words.join().unwrap_or_default());
            let _nobody_waits = ready.send(said);
            reap(&waited);
        });
        match is_ready.recv_timeout(START_MAX) {
            Ok(None) => Ok(()),
            Ok(Some(said)) => Err(format!("the weights' keeper ended: {said}")),
            Err(_late) => {
                let _gone = process.lock().kill();
                Err("the weights' keeper takes too long to load the model".into())
            }
        }
    }
}

/// Reads all that a process says of trouble, so that it never waits for a reader. Returns what it said
/// last before it ended.
fn last_words(errors: Option<impl Read>) -> String {
    let lines = errors.into_iter().flat_map(|errors| BufReader::new(errors).lines());
    let said = lines.map_while(Result::ok).filter(|line| !line.trim().is_empty()).last();
    said.unwrap_or_else(|| "it did not say why".into())
}

/// Waits for the end of a process that others may have to kill meanwhile.
fn reap(process: &Mutex<Child>) {
    const PAUSE: Duration = Duration::from_secs(1);
    while let Ok(None) = process.lock().try_wait() {
        std::thread::sleep(PAUSE);
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

/// A socket that is this keeper's until it ends.
struct Address {
    socket: PathBuf,
    inode: u64,
}

impl Address {
    /// Listens in place of a keeper that was killed: whoever starts one holds the lock. Errors: the
    /// system's, or something else is there.
    fn listen(socket: &Path) -> io::Result<(Self, UnixListener)> {
        if let Ok(found) = fs::symlink_metadata(socket) {
            if !found.file_type().is_socket() {
                return Err(io::Error::other("it is there, and no socket"));
            }
            fs::remove_file(socket)?;
        }
        let listener = UnixListener::bind(socket)?;
        let inode = fs::symlink_metadata(socket)?.ino();
        Ok((Self { socket: socket.to_path_buf(), inode }, listener))
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.socket);
        if found.is_ok_and(|found| found.ino() == self.inode) {
            let _gone = fs::remove_file(&self.socket);
        }
    }
}

/// Who uses the weights.
struct Users {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    count: usize,
    /// Nobody is told any more.
    is_ending: bool,
}

/// Keeps weights for whoever connects to the socket, until nobody has used them for `grace`. Errors:
/// the system's, or the driver does not share memory: a sentence.
pub fn keep(memory: &Allocation, socket: &Path, grace: Duration) -> Result<(), String> {
    let handle = memory.export().map_err(|error| error.to_string())?;
    let cannot = |error: io::Error| format!("cannot listen on {}: {error}", socket.display());
    let (_address, listener) = Address::listen(socket).map_err(cannot)?;
    let users = Arc::new(Users { state: Mutex::default(), changed: Condvar::new() });
    let accepting = users.clone();
    let acceptor = std::thread::Builder::new().name("keeper".into());
    acceptor.spawn(move || accepting.accept(&listener, &handle)).map_err(cannot)?;
    // Whoever started this may be gone; others come.
    let mut output = io::stdout();
    let _heard = writeln!(output, "{READY}").and_then(|()| output.flush());
    leave_stderr();
    users.wait_for_nobody(grace);
    Ok(())
}

/// Who started this reads what it says of trouble, and may end at any time.
fn leave_stderr() {
    if let Ok(nothing) = File::options().write(true).open("/dev/null") {
        // SAFETY: both are open; whoever writes to standard error goes on to do so.
        unsafe { libc::dup2(nothing.as_raw_fd(), libc::STDERR_FILENO) };
    }
}

impl Users {
    /// Until there was nobody for so long; from then on nobody is told.
    fn wait_for_nobody(&self, grace: Duration) {
        let mut state = self.state.lock();
        while !state.is_ending {
            while state.count > 0 {
                self.changed.wait(&mut state);
            }
            let is_late = self.changed.wait_for(&mut state, grace).timed_out();
            state.is_ending = is_late && state.count == 0;
        }
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener, handle: &IpcHandle) {
        for connection in listener.incoming() {
            match connection {
                Ok(connection) => self.serve(connection, *handle),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn serve(self: &Arc<Self>, mut user: UnixStream, handle: IpcHandle) {
        let mut state = self.state.lock();
        if state.is_ending {
            return;
        }
        if state.count == USERS_MAX {
            let _told = user.write_all(&[FULL]);
            return;
        }
        let (users, refused) = (self.clone(), user.try_clone());
        let served = std::thread::Builder::new().name("user".into()).spawn(move || {
            let told = user.write_all(&[&[HERE][..], &handle.0].concat());
            // A user says nothing; its end is the end of the connection.
            let _end = told.and_then(|()| user.read_exact(&mut [0]));
            users.state.lock().count -= 1;
            users.changed.notify_all();
        });
        state.count += usize::from(served.is_ok());
        if let (Err(_no_thread), Ok(mut user)) = (served, refused) {
            let _told = user.write_all(&[FULL]);
        }
        self.changed.notify_all();
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
