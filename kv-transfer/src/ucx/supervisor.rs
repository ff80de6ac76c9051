//! The worker's side: starts an agent, asks it, and starts another when it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use protocol::WorkerLife;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, block_in_place};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use super::frames::{Copy, Ended, LENGTH_BYTES, Reply, Request, following};
use super::process::{Launch, Process};
use super::{ANSWER_MAX, AVOIDED, RESTART_MAX, RESTART_MIN, START_MAX, UcxError};
use crate::cuda::CudaError;
use crate::plan::CopyOp;
use crate::tcp::wire::Kind;
use crate::tcp::{Lender, Right, batches};
use crate::{BlockCopy, BlockWriter, KvMemory, TransferError, tcp};

/// Gets that wait for the agent's socket; further ones wait to get into this queue.
const REQUESTS: usize = 64;

/// Beyond a get's own limit: what the agent may take to end it.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// An agent that lived for so long was no failure from the start.
const HEALTHY: Duration = Duration::from_secs(60);

/// Sources that are remembered as avoided.
const AVOIDED_MAX: usize = 1024;

/// What an agent has done. For metrics and tests.
#[derive(Default)]
pub struct AgentStatus {
    /// Agents that were started.
    pub lives: AtomicU64,
    /// Gets under way.
    pub gets: AtomicU64,
    /// Bytes that came in gets that ended well.
    pub bytes: AtomicU64,
    /// Pulls that another way had to do.
    pub failures: AtomicU64,
}

/// A pool's agent. Clones are the same one, which is ended when the last is dropped.
#[derive(Clone)]
pub struct Agent(Arc<Shared>);

struct Shared {
    memory: KvMemory,
    status: Arc<AgentStatus>,
    /// None while there is no agent.
    life: Arc<Mutex<Option<Arc<Life>>>>,
    /// Sources from which this way failed lately, and until when they are avoided.
    avoided: Mutex<HashMap<WorkerLife, Instant>>,
    supervision: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.supervision.abort();
        if let Some(life) = self.life.lock().take() {
            life.end();
        }
    }
}

impl Agent {
    /// Starts an agent for a pool, of shared memory or of a GPU, and waits until the pool is
    /// registered. Errors: why there will be none, as where UCX is not installed.
    pub async fn start(memory: &KvMemory, launch: Launch) -> Result<Self, UcxError> {
        let status = Arc::new(AgentStatus::default());
        let supervised = Supervised {
            memory: memory.clone(),
            launch,
            status: status.clone(),
            life: Arc::default(),
        };
        let life = supervised.life.clone();
        let first = supervised.begin().await.map_err(|(_, error)| error)?;
        *life.lock() = Some(first.0.clone());
        let supervision = tokio::spawn(supervised.run(first)).abort_handle();
        let (memory, avoided) = (memory.clone(), Mutex::default());
        Ok(Self(Arc::new(Shared { memory, status, life, avoided, supervision })))
    }

    /// What it has done.
    pub fn status(&self) -> &AgentStatus {
        &self.0.status
    }

    /// The process's id, while there is one.
    pub fn process_id(&self) -> Option<u32> {
        self.life().map(|life| life.process.id())
    }

    /// How others reach the pool, if it is `memory` and an agent offers it now.
    pub(crate) fn keys(&self, memory: &KvMemory) -> Option<Vec<u8>> {
        let is_its = self.0.memory.is(memory);
        self.life().filter(|_| is_its).map(|life| life.keys.clone())
    }

    /// Whether blocks of `worker` may be read now.
    pub(crate) fn reads_from(&self, worker: &WorkerLife) -> bool {
        let avoided = self.0.avoided.lock();
        self.life().is_some() && avoided.get(worker).is_none_or(|until| Instant::now() >= *until)
    }

    /// From now on `worker` is read by the next way for a while.
    pub(crate) fn avoid(&self, worker: &WorkerLife, error: &TransferError) {
        self.0.status.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, worker = %worker.id, "KV blocks come over tcp instead of UCX");
        let now = Instant::now();
        let mut avoided = self.0.avoided.lock();
        avoided.retain(|_, until| now < *until);
        if avoided.len() < AVOIDED_MAX {
            avoided.insert(worker.clone(), now + AVOIDED);
        }
    }

    /// Copies blocks of `worker`'s pool into the writer's. What was copied counts only once `finish`
    /// on the lease has succeeded. When the future is dropped in the middle, the agent is killed:
    /// nothing else would surely keep it from writing.
    pub async fn pull(
        &self,
        connections: &tcp::Connections,
        address: &str,
        right: Right<'_>,
        copies: &[BlockCopy],
        writer: &mut BlockWriter,
        deadline: Instant,
    ) -> Result<(), TransferError> {
        let lender = Lender { connections, address, right, deadline };
        let ops = writer.plan_from_afar(copies)?;
        for batch in batches(&ops, usize::MAX) {
            let borrowing = lender.borrow(Kind::BorrowByUcx, writer.layout(), batch);
            let (loan, keys) = borrowing.await?;
            let got = self.get(writer, batch, keys, deadline).await;
            got.map_err(|ended| ended.of(address))?;
            loan.give_back().await?;
        }
        Ok(())
    }

    async fn get(
        &self,
        writer: &mut BlockWriter,
        ops: &[CopyOp],
        keys: Vec<u8>,
        deadline: Instant,
    ) -> Result<(), GetError> {
        let life = self.life().ok_or(UcxError::Down)?;
        if !writer.memory().is(&self.0.memory) {
            return Err(UcxError::NotShared.into());
        }
        writer.memory().settled().await?;
        let block_bytes = writer.layout().block_bytes() as u64;
        let copy = |op: &CopyOp| Copy {
            from: u64::from(op.source) * block_bytes,
            to: u64::from(op.destination) * block_bytes,
            bytes: u64::from(op.blocks) * block_bytes,
        };
        let copies: Vec<Copy> = ops.iter().map(copy).collect();
        let bytes: u64 = copies.iter().map(|copy| copy.bytes).sum();
        let mut under_way = UnderWay::begin(&life, &self.0.status);
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let limit_ms = u32::try_from(left).unwrap_or(u32::MAX);
        let request = Request::Get { id: under_way.id, limit_ms, copies, keys };
        match under_way.ask(request, deadline + SETTLE_MAX).await? {
            Ended::Well => {
                self.0.status.bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Ended::Failed(reason) => Err(UcxError::Failed(reason).into()),
            Ended::Silent => Err(GetError::Silent),
            Ended::Late => Err(GetError::Late),
        }
    }

    fn life(&self) -> Option<Arc<Life>> {
        self.0.life.lock().clone()
    }
}

/// How a get ended, other than well.
enum GetError {
    Silent,
    Late,
    Ucx(UcxError),
    /// The pool's GPU fails.
    Cuda(CudaError),
}

impl From<CudaError> for GetError {
    fn from(error: CudaError) -> Self {
        Self::Cuda(error)
    }
}

impl From<UcxError> for GetError {
    fn from(error: UcxError) -> Self {
        Self::Ucx(error)
    }
}

impl GetError {
    fn of(self, address: &str) -> TransferError {
        let address = address.to_string();
        match self {
            Self::Silent => TransferError::Silent(address),
            Self::Late => TransferError::Deadline(address),
            Self::Ucx(error) => TransferError::Ucx(address, error),
            Self::Cuda(error) => TransferError::Cuda(error),
        }
    }
}

/// One agent, from its readiness to its end.
struct Life {
    process: Process,
    keys: Vec<u8>,
    requests: mpsc::Sender<Vec<u8>>,
    asked: Mutex<HashMap<u64, oneshot::Sender<Ended>>>,
    ids: AtomicU64,
}

impl Life {
    /// Ends the process; only then those who wait for it know, because until then it may write.
    fn end(&self) {
        self.process.kill();
        self.asked.lock().clear();
    }
}

/// A get that the agent may be writing for.
struct UnderWay<'a> {
    life: &'a Arc<Life>,
    status: &'a AgentStatus,
    id: u64,
    answer: oneshot::Receiver<Ended>,
    /// Whether the agent is done with it, or dead.
    is_settled: bool,
}

impl<'a> UnderWay<'a> {
    fn begin(life: &'a Arc<Life>, status: &'a AgentStatus) -> Self {
        status.gets.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let id = life.ids.fetch_add(1, Ordering::Relaxed);
        life.asked.lock().insert(id, sender);
        Self { life, status, id, answer, is_settled: true }
    }

    async fn ask(&mut self, request: Request, until: Instant) -> Result<Ended, UcxError> {
        let sending = self.life.requests.send(request.encode());
        match timeout_at(until, sending).await {
            Ok(Ok(())) => self.is_settled = false,
            Ok(Err(_)) | Err(_) => return Err(UcxError::Died),
        }
        match timeout_at(until, &mut self.answer).await {
            Ok(Ok(ended)) => {
                self.is_settled = true;
                Ok(ended)
            }
            // The process is dead: see `Life::end`.
            Ok(Err(_)) => {
                self.is_settled = true;
                Err(UcxError::Died)
            }
            Err(_) => Err(UcxError::Died),
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.life.asked.lock().remove(&self.id);
        self.status.gets.fetch_sub(1, Ordering::Relaxed);
        if !self.is_settled {
            tracing::warn!(
                "killing the UCX agent: it may still write for a transfer that was given up"
            );
            // At once, but not at the cost of other tasks: the system takes a process with a GPU's
            // context, or much registered memory, apart for a while.
            match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
                Ok(RuntimeFlavor::MultiThread) => block_in_place(|| self.life.end()),
                _ => self.life.end(),
            }
        }
    }
}

type Begun = (Arc<Life>, UnixStream, mpsc::Receiver<Vec<u8>>);

/// What is needed to start agents, again and again.
struct Supervised {
    memory: KvMemory,
    launch: Launch,
    status: Arc<AgentStatus>,
    life: Arc<Mutex<Option<Arc<Life>>>>,
}

impl Supervised {
    async fn run(self, mut begun: Begun) {
        let mut pause = RESTART_MIN;
        loop {
            let (life, socket, requests) = begun;
            let began = Instant::now();
            let reason = serve(&life, socket, requests).await;
            *self.life.lock() = None;
            tracing::warn!(reason, "the UCX agent ended; KV blocks come over tcp until it is back");
            // Taking apart a process with much registered memory takes a while.
            let ending = life.clone();
            let _ended = tokio::task::spawn_blocking(move || ending.end()).await;
            drop(life);
            if began.elapsed() >= HEALTHY {
                pause = RESTART_MIN;
            }
            begun = match self.begin_again(&mut pause).await {
                Ok(begun) => begun,
                Err(error) => {
                    tracing::warn!(%error, "the ucx way stays off");
                    return;
                }
            };
            *self.life.lock() = Some(begun.0.clone());
            tracing::info!(process = begun.0.process.id(), "the UCX agent is back");
        }
    }

    /// Errors: another try is in vain.
    async fn begin_again(&self, pause: &mut Duration) -> Result<Begun, UcxError> {
        loop {
            sleep(*pause).await;
            *pause = (*pause * 2).min(RESTART_MAX);
            match self.begin().await {
                Ok(begun) => return Ok(begun),
                Err((true, error)) => return Err(error),
                Err((false, error)) => {
                    tracing::warn!(%error, "cannot start the UCX agent again yet")
                }
            }
        }
    }

    /// Starts an agent and waits for its pool. Errors: whether another try is in vain, and why.
    async fn begin(&self) -> Result<Begun, (bool, UcxError)> {
        self.status.lives.fetch_add(1, Ordering::Relaxed);
        let passing = |error| (false, error);
        let (process, socket) = Process::start(&self.launch, &self.memory).map_err(passing)?;
        let socket = UnixStream::from_std(socket).map_err(UcxError::Start).map_err(passing)?;
        let (mut reading, writing) = socket.into_split();
        let reply = timeout(START_MAX, read_reply(&mut reading)).await;
        let unusable = |reason: &str| (false, UcxError::Unusable(reason.into()));
        let keys = match reply {
            Ok(Ok(Reply::Ready { keys })) => keys,
            Ok(Ok(Reply::Failed { is_final, reason })) => {
                return Err((is_final, UcxError::Unusable(reason)));
            }
            Ok(Ok(_)) => return Err(unusable("the UCX agent's first words make no sense")),
            Ok(Err(reason)) => {
                return Err(unusable(&format!("the UCX agent cannot be used: {reason}")));
            }
            Err(_) => return Err(unusable("the UCX agent does not become ready")),
        };
        let socket = reading.reunite(writing).map_err(|_| unusable("two sockets"))?;
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let (asked, ids) = (Mutex::default(), AtomicU64::new(1));
        let life = Arc::new(Life { process, keys, requests, asked, ids });
        Ok((life, socket, receiver))
    }
}

/// Carries questions and answers until the agent ends, and says why.
async fn serve(life: &Life, socket: UnixStream, requests: mpsc::Receiver<Vec<u8>>) -> &'static str {
    let (reading, writing) = socket.into_split();
    tokio::select! {
        biased;
        reason = hear(life, reading) => reason,
        reason = say(writing, requests) => reason,
    }
}

async fn hear(life: &Life, mut reading: OwnedReadHalf) -> &'static str {
    loop {
        match timeout(ANSWER_MAX, read_reply(&mut reading)).await {
            Err(_) => return "it does not answer",
            Ok(Err(reason)) => return reason,
            Ok(Ok(Reply::Ended { id, how })) => {
                // One that nobody waits for was given up, and its agent is being killed.
                if let Some(asked) = life.asked.lock().remove(&id) {
                    let _given_up = asked.send(how);
                }
            }
            Ok(Ok(Reply::Pong)) => {}
            Ok(Ok(_)) => return "what it says makes no sense",
        }
    }
}

async fn say(mut writing: OwnedWriteHalf, mut requests: mpsc::Receiver<Vec<u8>>) -> &'static str {
    let mut ping = interval(ANSWER_MAX / 4);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            biased;
            request = requests.recv() => match request {
                Some(frame) => frame,
                None => return "nobody needs it any more",
            },
            _ = ping.tick() => Request::Ping.encode(),
        };
        if writing.write_all(&frame).await.is_err() {
            return "its socket is closed";
        }
    }
}

async fn read_reply(socket: &mut OwnedReadHalf) -> Result<Reply, &'static str> {
    let mut length = [0; LENGTH_BYTES];
    socket.read_exact(&mut length).await.map_err(|_| "the process ended")?;
    let mut body = vec![0; following(length).ok_or("what it says is too long")?];
    socket.read_exact(&mut body).await.map_err(|_| "the process ended")?;
    Reply::decode(&body).ok_or("what it says makes no sense")
}
