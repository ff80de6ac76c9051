//! Runs an engine: on a thread of its own, or as a task under the runtime's clock. Commands reach it
//! between steps; each step's news goes out in one message per recipient.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::{
    Engine, Guesses, KvEvent, Load, RefusedSequence, Reserved, RunnerError, SequenceId,
    SequenceRequest, Watch,
};
use kv_transfer::{BlockWriter, KvLayout, KvMemory};
use parking_lot::Mutex;
use protocol::{BlockHash, WorkerLife, v1};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine_loop::EngineLoop;
use crate::latency::LatencyLearner;
use crate::news::Outputs;

/// Commands that wait for the end of a step. A full queue makes callers wait: back-pressure.
const COMMAND_QUEUE: usize = 1024;

/// Batches of KV events that wait to be published. At the limit one is dropped, which readers see
/// as a gap in its sequence number.
const KV_EVENT_QUEUE: usize = 1024;

/// Changes of the prefix cache in one step, numbered without gaps at their source.
pub struct KvEventBatch {
    /// Rises by one.
    pub sequence: u64,
    /// What changed, in order.
    pub events: Vec<KvEvent>,
}

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The engine refuses the sequence.
    #[error(transparent)]
    Refused(#[from] RefusedSequence),
    /// A copy into reserved blocks was cut short by a defect.
    #[error("the reserved blocks were lost")]
    ReservationLost,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// What a host says to its engine's loop.
pub(crate) enum Command {
    Generate(SequenceRequest, Outputs, Reply<()>),
    Prefill(SequenceRequest, Outputs, Reply<()>),
    Reserve(SequenceRequest, Outputs, Reply<Reserved>),
    Activate {
        id: SequenceId,
        first_token: u32,
        ended: oneshot::Sender<bool>,
    },
    ComputeReserved {
        id: SequenceId,
        first_token: Option<u32>,
        ended: oneshot::Sender<bool>,
    },
    /// The last handle of a sequence is gone.
    Release(SequenceId),
    /// Look at the overflow of releases.
    Wake,
    Snapshot(oneshot::Sender<KvSnapshot>),
}

/// What a prefix cache holds at one moment.
pub struct KvSnapshot {
    /// The number of the first batch of events that is not contained.
    pub next_sequence: u64,
    /// In no order.
    pub hashes: Vec<BlockHash>,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, RefusedSequence>>;

/// A handle to a running engine.
pub struct EngineHost {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    kv_events: Mutex<Option<mpsc::Receiver<KvEventBatch>>>,
    stopped: CancellationToken,
    layout: KvLayout,
    memory: KvMemory,
    watch: Option<Watch>,
    vocabulary_size: usize,
    next_sequence: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) status: Mutex<Status>,
    /// Cancelled once the engine has warmed up.
    pub(crate) warm: CancellationToken,
    pub(crate) became_idle: Notify,
    /// Sequences whose handles are gone and whose release found the queue full. One entry per
    /// living sequence at most.
    pub(crate) releases: Mutex<Vec<SequenceId>>,
    /// Why the engine could not go on.
    failure: Mutex<Option<RunnerError>>,
}

/// An engine as of its last step.
#[derive(Default)]
pub(crate) struct Status {
    pub(crate) load: Load,
    /// The number of the next batch of KV events.
    pub(crate) kv_sequence: u64,
    pub(crate) latency: LatencyLearner,
    /// Steps that were not idle.
    pub(crate) steps: u64,
    /// Of all steps.
    pub(crate) guesses: Guesses,
    /// The step under way.
    pub(crate) step: Option<StepUnderWay>,
}

/// A step that the engine is computing.
#[derive(Clone, Copy)]
pub(crate) struct StepUnderWay {
    pub(crate) began: Instant,
    pub(crate) predicted_us: f32,
}

/// A sequence's right to be in the engine: when the last clone is dropped, the sequence is
/// released in whatever state it is.
#[derive(Clone)]
pub struct SequenceHandle(Arc<Guard>);

struct Guard {
    id: SequenceId,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// Blocks of a reserved sequence, to be filled. Keeps the sequence in the engine while it lives.
pub struct Reservation {
    /// Blocks at the prompt's start that were there already.
    pub cached_blocks: usize,
    /// Fills the others. (Dropped before the handle: fields drop in order.)
    pub writer: BlockWriter,
    handle: SequenceHandle,
}

impl SequenceHandle {
    /// The sequence's name in its engine.
    pub fn id(&self) -> SequenceId {
        self.0.id
    }

    /// Keeps the sequence's blocks for as long as it lives.
    pub fn as_holder(&self) -> kv_transfer::Holder {
        self.0.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Behind the sequence's own commands, or into the overflow where the queue is full. Should
        // the engine have emptied the queue meanwhile, the wake-up has it look there.
        if self.commands.try_send(Command::Release(self.id)).is_err() {
            self.shared.releases.lock().push(self.id);
            let _full_again = self.commands.try_send(Command::Wake);
        }
    }
}

impl Shared {
    fn end(&self, ended: Result<(), RunnerError>) {
        *self.failure.lock() = ended.err();
    }
}

impl EngineHost {
    /// Starts the engine on a thread of its own.
    pub fn start(engine: Engine, life: &WorkerLife) -> std::io::Result<Self> {
        let (host, looped, stopped) = Self::new(engine);
        let shared = host.shared.clone();
        std::thread::Builder::new().name(format!("engine-{}", life.id)).spawn(move || {
            let _announces_the_end = stopped.drop_guard();
            shared.end(looped.run_on_thread());
        })?;
        Ok(host)
    }

    /// Starts the engine as a task, whose steps take the time of the runtime's clock. For mocks:
    /// arithmetic would hold up the runtime.
    pub fn start_as_task(engine: Engine) -> Self {
        let (host, looped, stopped) = Self::new(engine);
        let shared = host.shared.clone();
        tokio::spawn(async move {
            let _announces_the_end = stopped.drop_guard();
            shared.end(looped.run_as_task().await);
        });
        host
    }

    fn new(engine: Engine) -> (Self, EngineLoop, CancellationToken) {
        let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
        let (kv_events, kv_event_receiver) = mpsc::channel(KV_EVENT_QUEUE);
        let shared = Arc::new(Shared::default());
        shared.status.lock().load = engine.load();
        let stopped = CancellationToken::new();
        let host = Self {
            commands,
            shared: shared.clone(),
            kv_events: Mutex::new(Some(kv_event_receiver)),
            stopped: stopped.clone(),
            layout: engine.layout().clone(),
            memory: engine.memory().clone(),
            watch: engine.watch(),
            vocabulary_size: engine.vocabulary_size(),
            next_sequence: AtomicU64::new(0),
        };
        let recipients = Vec::new();
        (host, EngineLoop { engine, inbox, shared, kv_events, kv_sequence: 0, recipients }, stopped)
    }

    /// The layout of the engine's KV blocks.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Where they lie.
    pub fn memory(&self) -> &KvMemory {
        &self.memory
    }

    /// Token ids are below this.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// How busy the engine is, as of its last step.
    pub fn load(&self) -> Load {
        self.shared.status.lock().load
    }

    /// The number that the next batch of KV events will have.
    pub fn kv_sequence(&self) -> u64 {
        self.shared.status.lock().kv_sequence
    }

    /// How the present step gets on, for those who watch over this engine.
    pub fn progress(&self) -> v1::Progress {
        let status = self.shared.status.lock();
        let step = status.step;
        v1::Progress {
            steps: status.steps,
            running_us: step.map_or(0, |step| step.began.elapsed().as_micros() as u64),
            predicted_us: step.map_or(0, |step| step.predicted_us as u64),
        }
    }

    /// What sequences guessed since the engine began.
    pub fn guesses(&self) -> Guesses {
        self.shared.status.lock().guesses
    }

    /// How long steps take here, as learned so far; nothing before the first step.
    pub fn latency(&self) -> Option<v1::LatencyModel> {
        self.shared.status.lock().latency.model()
    }

    /// Waits until the engine has warmed up and knows how long its steps take.
    pub async fn warm(&self) {
        self.shared.warm.cancelled().await;
    }

    /// Waits until the engine has nothing to compute, again since the last call; for one waiter.
    pub async fn became_idle(&self) {
        self.shared.became_idle.notified().await;
    }

    /// Waits until the engine's thread has ended.
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Why the engine will not compute any more, although it may not have noticed.
    pub(crate) fn lost(&self) -> Option<RunnerError> {
        self.watch.as_ref().and_then(|watch| watch())
    }

    /// Why it ended, unless by a defect. Said once.
    pub(crate) fn take_failure(&self) -> Option<RunnerError> {
        self.shared.failure.lock().take()
    }

    /// The changes of the prefix cache; for one taker.
    pub fn take_kv_events(&self) -> Option<mpsc::Receiver<KvEventBatch>> {
        self.kv_events.lock().take()
    }

    /// What the prefix cache holds now.
    pub async fn kv_snapshot(&self) -> Result<KvSnapshot, HostError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Snapshot(reply)).await?;
        answer.await.map_err(|_| HostError::Stopped)
    }

    /// A name for a new sequence, before it is submitted.
    pub fn new_sequence(&self) -> SequenceHandle {
        let id = SequenceId(self.next_sequence.fetch_add(1, Ordering::Relaxed));
        let (shared, commands) = (self.shared.clone(), self.commands.clone());
        SequenceHandle(Arc::new(Guard { id, shared, commands }))
    }

    /// Submits a sequence for all its tokens.
    pub async fn generate(
        &self,
        request: SequenceRequest,
        outputs: Outputs,
    ) -> Result<(), HostError> {
        self.ask(|reply| Command::Generate(request, outputs, reply)).await
    }

    /// Submits a sequence for its first token; its blocks stay until its handle is dropped.
    pub async fn prefill(
        &self,
        request: SequenceRequest,
        outputs: Outputs,
    ) -> Result<(), HostError> {
        self.ask(|reply| Command::Prefill(request, outputs, reply)).await
    }

    /// Sets a prompt's blocks aside.
    pub async fn reserve(
        &self,
        request: SequenceRequest,
        outputs: Outputs,
        handle: SequenceHandle,
    ) -> Result<Reservation, HostError> {
        let reserved = self.ask(|reply| Command::Reserve(request, outputs, reply)).await?;
        let Reserved { cached_blocks, writer } = reserved;
        Ok(Reservation { cached_blocks, writer, handle })
    }

    /// A filled and verified reservation goes on after `first_token`. True: that was its last.
    pub async fn activate(
        &self,
        reservation: Reservation,
        first_token: u32,
    ) -> Result<bool, HostError> {
        self.resume(reservation, |id, ended| Command::Activate { id, first_token, ended }).await
    }

    /// A reservation whose transfer failed computes its prompt here. True: `first_token` was its
    /// last.
    pub async fn compute_reserved(
        &self,
        reservation: Reservation,
        first_token: Option<u32>,
    ) -> Result<bool, HostError> {
        let command = |id, ended| Command::ComputeReserved { id, first_token, ended };
        self.resume(reservation, command).await
    }

    async fn resume(
        &self,
        reservation: Reservation,
        command: impl FnOnce(SequenceId, oneshot::Sender<bool>) -> Command,
    ) -> Result<bool, HostError> {
        let Reservation { writer, handle, .. } = reservation;
        drop(writer);
        let (ended, answer) = oneshot::channel();
        self.send(command(handle.id(), ended)).await?;
        answer.await.map_err(|_| HostError::Stopped)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, HostError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        Ok(answer.await.map_err(|_| HostError::Stopped)??)
    }

    async fn send(&self, command: Command) -> Result<(), HostError> {
        self.commands.send(command).await.map_err(|_| HostError::Stopped)
    }
}
