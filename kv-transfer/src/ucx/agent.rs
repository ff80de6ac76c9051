//! The agent's side: a process that does UCX's work for one worker, so that nothing that happens
//! inside UCX happens to the worker. It maps the worker's pool, offers it to others, and reads theirs
//! into it. One thread waits for two things: its worker, and UCX.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};

use super::bindings::describe;
use super::frames::{
    Copy, Ended, FRAME_BYTES_MAX, LENGTH_BYTES, POOL_FRAME_BYTES_MAX, Place, Reply, Request,
    following,
};
use super::memory::{NoMemory, PoolMemory};
use super::pool::{self, Closing, Get, Peer, Pool};
use super::{AGENT_GETS_MAX, SILENCE_MAX};

/// Bytes that are read at once: at a megabyte a second a peer does not count as silent.
const GET_BYTES: u64 = 1 << 20;

/// Reads under way; further ones wait their turn, one of each get.
const UNDER_WAY_MAX: usize = 128;

/// Of these, from one peer: one that has stopped does not keep all others waiting.
const UNDER_WAY_EACH_MAX: usize = 32;

/// Peers that are kept connected; of more, those that were not used for longest are closed.
const PEERS_MAX: usize = 256;

/// Peers that failed, after which an agent makes room for the next one: of a connection that is
/// refused UCX (1.13, 1.22) keeps a file open.
const FAILED_PEERS_MAX: usize = 256;

/// How often time limits are looked at while something is under way.
const CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// There is something to do already.
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A worker that does not take an answer for so long has no use for an agent.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// Rounds of progress before anything else is looked at.
const PROGRESS_ROUNDS: usize = 64;

unsafe extern "C" {
    /// Ends the process and runs nothing of what was registered for its end.
    safe fn _exit(status: c_int) -> !;
}

/// Serves the worker whose socket is this process's standard input, until that ends. What UCX has
/// registered to be done at the end of a process may crash it, so none of it is.
pub fn run() -> ! {
    let status = match serve() {
        Ok(()) => 0,
        Err(reason) => {
            let _closed = writeln!(io::stderr(), "stator: the UCX agent ends: {reason}");
            70
        }
    };
    _exit(status)
}

fn serve() -> Result<(), String> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    let socket = UnixStream::from(input.map_err(|error| error.to_string())?);
    let Some(memory) = receive_pool(&socket)? else { return Ok(()) };
    socket.set_write_timeout(Some(WRITE_MAX)).map_err(|error| error.to_string())?;
    let pool = match memory.and_then(pool::open) {
        Ok(pool) => pool,
        Err((is_final, reason)) => return say(&socket, &Reply::Failed { is_final, reason }),
    };
    say(&socket, &Reply::Ready { keys: pool.keys().to_vec() })?;
    Serving {
        pool,
        socket,
        incoming: Vec::new(),
        peers: HashMap::new(),
        peers_seen: 0,
        peers_failed: 0,
        gets: HashMap::new(),
        waiting: VecDeque::new(),
        under_way: Vec::new(),
        closing: Vec::new(),
    }
    .run()
}

/// Waits for the first frame, and maps what it names. `None`: the worker is gone.
fn receive_pool(socket: &UnixStream) -> Result<Option<Result<PoolMemory, NoMemory>>, String> {
    let mut frame = [0; POOL_FRAME_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut frame)];
    let received = recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
    let not_a_command = "it is started by workers, and is no command for people";
    let received = received.map_err(|error| format!("{not_a_command} ({error})"))?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let body = frame[..received.bytes].get(LENGTH_BYTES..);
    let Some(Request::Pool { bytes, place }) = body.and_then(Request::decode) else {
        return Err(not_a_command.into());
    };
    match (place, file) {
        (Place::File, Some(file)) => Ok(Some(PoolMemory::of_file(&file, bytes))),
        (Place::File, None) => Err(not_a_command.into()),
        (Place::Gpu { ordinal, handle }, _) => Ok(Some(PoolMemory::of_gpu(ordinal, handle, bytes))),
    }
}

fn say(mut socket: &UnixStream, reply: &Reply) -> Result<(), String> {
    socket
        .write_all(&reply.encode())
        .map_err(|error| format!("its worker does not listen: {error}"))
}

/// A pool in service.
struct Serving {
    pool: Pool,
    socket: UnixStream,
    /// Of a frame that is not complete.
    incoming: Vec<u8>,
    peers: HashMap<u64, Connected>,
    /// Names the next one.
    peers_seen: u64,
    peers_failed: usize,
    gets: HashMap<u64, Job>,
    /// Gets with something left to begin, in turn.
    waiting: VecDeque<u64>,
    under_way: Vec<UnderWay>,
    /// By the names of their peers.
    closing: Vec<(u64, Closing)>,
}

struct Connected {
    peer: Peer,
    keys: Vec<u8>,
    reads: usize,
    /// When something came, or was asked for after nothing was due.
    moved: Instant,
    used: Instant,
}

/// A get that was asked for.
struct Job {
    peer: u64,
    copies: VecDeque<Copy>,
    reads: usize,
    deadline: Instant,
    /// Why it will not end well.
    failed: Option<Ended>,
}

struct UnderWay {
    job: u64,
    peer: u64,
    get: Get,
}

impl Serving {
    fn run(mut self) -> Result<(), String> {
        let events = self.pool.event_fd()?;
        loop {
            self.progress();
            self.give_up(Instant::now());
            self.begin(Instant::now());
            self.answer()?;
            if self.peers_failed >= FAILED_PEERS_MAX && self.is_idle() {
                return Err(format!("{FAILED_PEERS_MAX} of its peers have failed"));
            }
            let is_armed = self.pool.arm()?;
            let limit = match (is_armed, self.is_idle()) {
                (false, _) => Some(AT_ONCE),
                (true, false) => Some(CHECK),
                (true, true) => None,
            };
            let mut waited = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::from_borrowed_fd(events, PollFlags::IN),
            ];
            match poll(&mut waited, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(format!("cannot wait: {error}")),
            }
            let is_spoken_to = !waited[0].revents().is_empty();
            if is_spoken_to && !self.listen()? {
                return Ok(());
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.gets.is_empty() && self.closing.is_empty()
    }

    /// Moves bytes, and sees what has ended.
    fn progress(&mut self) {
        for _ in 0..PROGRESS_ROUNDS {
            if !self.pool.progress() {
                break;
            }
        }
        let now = Instant::now();
        let mut under_way = std::mem::take(&mut self.under_way);
        under_way.retain(|read| match self.pool.ended(&read.get) {
            None => true,
            Some(how) => {
                self.ended(read.job, read.peer, how.map_err(describe), now);
                false
            }
        });
        self.under_way = under_way;
        let closing = std::mem::take(&mut self.closing).into_iter();
        let (closed, closing): (Vec<_>, Vec<_>) =
            closing.partition(|(_, closing)| self.pool.is_closed(closing));
        self.closing = closing;
        closed.into_iter().for_each(|(_, closed)| self.pool.forget(closed));
    }

    fn ended(&mut self, job: u64, peer: u64, how: Result<(), String>, now: Instant) {
        if let Some(connected) = self.peers.get_mut(&peer) {
            connected.reads -= 1;
            connected.moved = now;
        }
        if let Some(job) = self.gets.get_mut(&job) {
            job.reads -= 1;
            if let Err(reason) = how {
                job.failed.get_or_insert(Ended::Failed(reason));
            }
        }
    }

    /// Closes peers that failed, fell silent or are too slow, which ends their reads.
    fn give_up(&mut self, now: Instant) {
        let late = |job: &Job| job.failed.is_none() && now >= job.deadline;
        for job in self.gets.values_mut().filter(|job| late(job)) {
            job.failed = Some(Ended::Late);
        }
        let failed_reads = |gets: &HashMap<u64, Job>, peer: u64| {
            gets.values().any(|job| job.peer == peer && job.reads > 0 && job.failed.is_some())
        };
        let reason = |peer: u64, connected: &Connected| {
            if let Some(status) = connected.peer.error() {
                return Some(Ended::Failed(describe(status)));
            }
            if connected.reads > 0 && now >= connected.moved + SILENCE_MAX {
                return Some(Ended::Silent);
            }
            let cut = "another transfer from there failed".to_string();
            failed_reads(&self.gets, peer).then_some(Ended::Failed(cut))
        };
        let given_up: Vec<(u64, Ended)> = self
            .peers
            .iter()
            .filter_map(|(peer, connected)| Some((*peer, reason(*peer, connected)?)))
            .collect();
        for (peer, reason) in given_up {
            self.peers_failed += 1;
            self.close(peer, reason);
        }
    }

    fn close(&mut self, peer: u64, reason: Ended) {
        for job in self.gets.values_mut().filter(|job| job.peer == peer) {
            job.failed.get_or_insert(reason.clone());
        }
        if let Some(connected) = self.peers.remove(&peer) {
            self.closing.push((peer, self.pool.close(connected.peer)));
        }
    }

    /// Begins reads as long as there is room, one of each get in turn.
    fn begin(&mut self, now: Instant) {
        let mut passed_over = 0;
        while self.under_way.len() < UNDER_WAY_MAX
            && passed_over < self.waiting.len()
            && let Some(id) = self.waiting.pop_front()
        {
            let Some(job) = self.gets.get_mut(&id).filter(|job| job.failed.is_none()) else {
                continue;
            };
            let Some(connected) = self.peers.get_mut(&job.peer) else { continue };
            if connected.reads >= UNDER_WAY_EACH_MAX {
                passed_over += 1;
                self.waiting.push_back(id);
                continue;
            }
            passed_over = 0;
            let Some(copy) = job.next_copy() else { continue };
            if connected.reads == 0 {
                connected.moved = now;
            }
            connected.used = now;
            match self.pool.get(&connected.peer, copy) {
                Ok(None) => {}
                Ok(Some(get)) => {
                    job.reads += 1;
                    connected.reads += 1;
                    self.under_way.push(UnderWay { job: id, peer: job.peer, get });
                }
                Err(reason) => job.failed = Some(Ended::Failed(reason)),
            }
            self.waiting.push_back(id);
        }
    }

    /// Says which gets have ended: that of a peer that is being closed may still be written for.
    fn answer(&mut self) -> Result<(), String> {
        let closing = &self.closing;
        let is_over = |job: &Job| {
            let has_ended = job.failed.is_some() || job.copies.is_empty();
            has_ended && job.reads == 0 && closing.iter().all(|(peer, _)| *peer != job.peer)
        };
        let over: Vec<(u64, Job)> = self.gets.extract_if(|_, job| is_over(job)).collect();
        if over.is_empty() {
            return Ok(());
        }
        let settled = self.pool.settle();
        for (id, job) in over {
            let settled = || settled.clone().map_or_else(Ended::Failed, |()| Ended::Well);
            let how = job.failed.unwrap_or_else(settled);
            say(&self.socket, &Reply::Ended { id, how })?;
        }
        // A GPU that does not is of no use to this process any more.
        settled
    }

    /// Takes what the worker says. Returns false when it is gone.
    fn listen(&mut self) -> Result<bool, String> {
        let mut bytes = [0; 64 << 10];
        let received = match recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(false),
            Ok((_, received)) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
            Err(error) => return Err(format!("cannot hear its worker: {error}")),
        };
        self.incoming.extend_from_slice(&bytes[..received]);
        while let Some((length, rest)) = self.incoming.split_first_chunk::<LENGTH_BYTES>() {
            let length = following(*length).ok_or("its worker sends a frame that is too long")?;
            let Some(body) = rest.get(..length) else { break };
            let request = Request::decode(body).ok_or("its worker's frame makes no sense")?;
            self.incoming.drain(..LENGTH_BYTES + length);
            self.take(request)?;
        }
        debug_assert!(self.incoming.len() <= LENGTH_BYTES + FRAME_BYTES_MAX);
        Ok(true)
    }

    fn take(&mut self, request: Request) -> Result<(), String> {
        match request {
            Request::Ping => say(&self.socket, &Reply::Pong),
            Request::Pool { .. } => Err("its worker sends a second pool".into()),
            Request::Get { id, limit_ms, copies, keys } => {
                let now = Instant::now();
                match self.peer(keys, now) {
                    Ok(peer) => {
                        let deadline = now + Duration::from_millis(u64::from(limit_ms));
                        let copies = copies.into();
                        self.gets
                            .insert(id, Job { peer, copies, reads: 0, deadline, failed: None });
                        self.waiting.push_back(id);
                        Ok(())
                    }
                    Err(reason) => {
                        say(&self.socket, &Reply::Ended { id, how: Ended::Failed(reason) })
                    }
                }
            }
        }
    }

    /// The peer with these keys, connected.
    fn peer(&mut self, keys: Vec<u8>, now: Instant) -> Result<u64, String> {
        if self.gets.len() >= AGENT_GETS_MAX {
            return Err(format!("more than {AGENT_GETS_MAX} transfers at once"));
        }
        if let Some((peer, _)) = self.peers.iter().find(|(_, connected)| connected.keys == keys) {
            return Ok(*peer);
        }
        self.make_room();
        let connected = self.pool.connect(&keys);
        self.peers_failed += usize::from(connected.is_err());
        let (peer, reads) = (connected?, 0);
        self.peers_seen += 1;
        let connected = Connected { peer, keys, reads, moved: now, used: now };
        self.peers.insert(self.peers_seen, connected);
        Ok(self.peers_seen)
    }

    /// Closes the peer that nobody needs and was not used for longest, where there are many. All of
    /// them cannot be needed: there are more than gets.
    fn make_room(&mut self) {
        if self.peers.len() < PEERS_MAX {
            return;
        }
        let is_needed = |peer: u64| self.gets.values().any(|job| job.peer == peer);
        let unneeded = self.peers.iter().filter(|(peer, _)| !is_needed(**peer));
        let oldest = unneeded.min_by_key(|(_, connected)| connected.used).map(|(peer, _)| *peer);
        if let Some(peer) = oldest {
            self.close(peer, Ended::Silent);
        }
    }
}

impl Job {
    /// The next piece to read.
    fn next_copy(&mut self) -> Option<Copy> {
        let copy = self.copies.front_mut()?;
        let bytes = copy.bytes.min(GET_BYTES);
        let piece = Copy { bytes, ..*copy };
        *copy = Copy {
            from: copy.from.saturating_add(bytes),
            to: copy.to.saturating_add(bytes),
            bytes: copy.bytes - bytes,
        };
        if copy.bytes == 0 {
            self.copies.pop_front();
        }
        Some(piece)
    }
}
