//! A prefill and a decode worker with mock runners, and the wires between them.

use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use engine::{EngineConfig, MockRunner, MockTimes, MockVocabulary};
use kv_transfer::{
    HostMemory, KvMemory, LeaseLimits, LeaseTable, LocalPools, TransferFaults, Ways,
};
use messaging::{Faults, Link, Network};
use parking_lot::Mutex;
use prefill_worker::KvSource;
use protocol::v1::{self, Role};
use protocol::{Incarnation, WorkerLife};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use worker::{EngineHost, EnginePlace, Worker, WorkerConfig, WorkerError};

use crate::client::{Answer, Client};

pub const PREFILL: &str = "prefill/7";
pub const DECODE: &str = "decode/7";

pub const BLOCK_SIZE: usize = 16;
pub const VOCABULARY: usize = 1000;
const CONTEXT_TOKENS: usize = 32_768;

/// A prompt of ten steps of 5 ms, and 24 tokens of 2 ms each.
pub const PROMPT_TOKENS: usize = 300;
const TIMES: MockTimes =
    MockTimes { prefill_us_per_token: 100.0, step_us: 1000.0, step_us_per_seq: 100.0 };

/// Beyond the time in which a worker alone answers: noticing a broken connection takes none.
pub const NOTICED: Duration = Duration::from_millis(100);

/// After which a prompt that gets no further is computed elsewhere (`decode_worker::remote_prefill`),
/// and the heartbeat at which that is noticed.
pub const STANDSTILL_MAX: Duration = Duration::from_millis(60_000 + 250);

/// A lease that nobody renews, its grace, and the interval in which ended leases are looked for.
pub const LEASE_GONE: Duration = Duration::from_millis(10_000 + 1_000 + 100);

/// The sizes of both workers, and what befalls transfers.
pub struct Plan {
    pub prefill: EngineConfig,
    pub decode: EngineConfig,
    pub leases: LeaseLimits,
    pub transfers: Option<Box<dyn TransferFaults>>,
}

impl Default for Plan {
    fn default() -> Self {
        let sizes = EngineConfig {
            block_size: BLOCK_SIZE,
            kv_blocks: 1500,
            max_num_seqs: 8,
            max_num_batched_tokens: 32,
            waiting_sequences_max: 4,
            speculative_tokens: 0,
            step_target: None,
            shares_memory: false,
        };
        Self { prefill: sizes, decode: sizes, leases: LeaseLimits::default(), transfers: None }
    }
}

/// See the module's description. Holds on to nothing that a dead worker must let go.
pub struct System {
    pub network: Network,
    pub prefill: Side,
    pub decode: Side,
    leases: Weak<LeaseTable>,
    wires: Wires,
}

/// One of the workers.
pub struct Side {
    endpoint: &'static str,
    host: Weak<EngineHost>,
    memory: Weak<HostMemory>,
    task: AbortHandle,
}

impl System {
    pub async fn start(plan: Plan) -> Self {
        let wires = Wires::default();
        let network = Network::with_faults(Arc::new(wires.clone()));
        let local = Arc::new(match plan.transfers {
            Some(faults) => LocalPools::with_faults(faults),
            None => LocalPools::default(),
        });
        let ways = Ways { local, ..Default::default() };
        let table = Arc::new(LeaseTable::new(plan.leases));
        let leases = Arc::downgrade(&table);
        let (wired, readable) = (network.clone(), ways.clone());
        let kv = KvSource { leases: table, listener: None };
        let prefill = Side::start(PREFILL, Role::Prefill, plan.prefill, |worker| {
            prefill_worker::run(worker, kv, wired, readable, CancellationToken::new())
        });
        let decode = Side::start(DECODE, Role::Decode, plan.decode, |worker| {
            decode_worker::run(worker, network.clone(), ways, CancellationToken::new())
        });
        // Both listen as soon as their tasks have begun.
        sleep(Duration::from_millis(1)).await;
        Self { network, prefill, decode, leases, wires }
    }

    pub async fn connect(&self, endpoint: &str) -> Channel {
        self.network.data_plane.connect(endpoint).await.unwrap()
    }

    /// Breaks all connections to an endpoint.
    pub fn cut(&self, endpoint: &str) {
        self.wires.cut(endpoint);
    }

    /// Ends a worker in the middle of whatever it does.
    pub fn kill(&self, side: &Side) {
        side.task.abort();
        self.cut(side.endpoint);
    }

    /// Leases that are left; none once their worker is gone.
    pub fn leases(&self) -> usize {
        self.leases.upgrade().map_or(0, |leases| leases.len())
    }

    /// Checks that by `deadline` no block is used and no lease is left, on either side.
    #[track_caller]
    pub fn check_rest(&self, deadline: Instant) -> impl Future<Output = ()> {
        let caller = Location::caller();
        async move {
            let left = || (self.prefill.blocks_used(), self.decode.blocks_used(), self.leases());
            while left() != (0, 0, 0) && Instant::now() < deadline {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(left(), (0, 0, 0), "{caller}: (blocks, blocks, leases) left");
            let late = Instant::now().saturating_duration_since(deadline);
            assert_eq!(late, Duration::ZERO, "{caller}: at rest too late");
            for host in [&self.prefill, &self.decode].into_iter().filter_map(|s| s.host.upgrade()) {
                let blocks = host.load().blocks;
                assert_eq!(blocks.free + blocks.cached, host.memory().blocks(), "{caller}");
            }
        }
    }
}

impl Side {
    fn start<R>(
        endpoint: &'static str,
        role: Role,
        sizes: EngineConfig,
        run: impl FnOnce(Worker) -> R,
    ) -> Self
    where
        R: Future<Output = Result<(), WorkerError>> + Send + 'static,
    {
        let worker = start_worker(endpoint, role, sizes);
        let host = Arc::downgrade(&worker.host);
        let KvMemory::Host(memory) = worker.host.memory() else { panic!("mocks are on the host") };
        let memory = Arc::downgrade(memory);
        Self { endpoint, host, memory, task: tokio::spawn(run(worker)).abort_handle() }
    }

    /// A living worker's engine.
    pub fn host(&self) -> Arc<EngineHost> {
        self.host.upgrade().expect("the worker lives")
    }

    /// Blocks in use. A dead worker's all are until its memory is gone.
    pub fn blocks_used(&self) -> usize {
        match self.host.upgrade() {
            Some(host) => host.load().blocks.used,
            None => self.memory.upgrade().map_or(0, |memory| memory.blocks()),
        }
    }
}

fn start_worker(endpoint: &str, role: Role, engine: EngineConfig) -> Worker {
    let name = endpoint.split('/').next().unwrap();
    let words = (0..VOCABULARY as u32).collect();
    let vocabulary = MockVocabulary {
        vocabulary_size: VOCABULARY,
        words,
        context_tokens: CONTEXT_TOKENS,
        eos_token_ids: Vec::new(),
    };
    Worker::start(WorkerConfig {
        life: WorkerLife { id: name.into(), incarnation: Incarnation(7) },
        role,
        runner: Box::new(MockRunner::new(TIMES, vocabulary)),
        place: EnginePlace::Task,
        engine,
        card: v1::ModelCard { name: "m".into(), ..Default::default() },
        hardware: None,
    })
    .unwrap()
}

/// A request whose prompt is computed where it is decoded.
pub fn request(prompt_tokens: usize) -> v1::GenerateRequest {
    let token = |index: usize| (index * 37 + 5) as u32 % VOCABULARY as u32;
    v1::GenerateRequest {
        prompt_tokens: (0..prompt_tokens).map(token).collect(),
        sampling: Some(v1::Sampling { temperature: 1.0, seed: 42, ..Default::default() }),
        stopping: Some(v1::Stopping { max_tokens: 24, ..Default::default() }),
        ..Default::default()
    }
}

/// The same request with its prompt computed by the prefill worker, which is reached at `endpoint`.
pub fn via(endpoint: &str, request: v1::GenerateRequest) -> v1::GenerateRequest {
    let prefill = v1::PrefillWorker {
        worker_id: "prefill".into(),
        incarnation: 7,
        data_endpoint: endpoint.into(),
    };
    v1::GenerateRequest { prefill: Some(prefill), ..request }
}

/// What a worker alone answers, and how long that takes it.
pub async fn alone(request: &v1::GenerateRequest) -> (Answer, Duration) {
    let system = System::start(Plan::default()).await;
    let began = Instant::now();
    let mut client = Client::connect(&system).await;
    client.ask(1, v1::GenerateRequest { prefill: None, ..request.clone() }).await;
    let answer = client.ended(1).await;
    (answer, began.elapsed())
}

/// Connections that can be cut.
#[derive(Clone, Default)]
struct Wires(Arc<Mutex<Vec<(String, CancellationToken)>>>);

impl Wires {
    fn cut(&self, endpoint: &str) {
        for (_, cut) in self.0.lock().extract_if(.., |(other, _)| other == endpoint) {
            cut.cancel();
        }
    }
}

impl Faults for Wires {
    fn carry(&self, _subject: &str, payload: Bytes) -> Vec<(Duration, Bytes)> {
        vec![(Duration::ZERO, payload)]
    }

    fn link(&self, endpoint: &str) -> Link {
        let cut = CancellationToken::new();
        self.0.lock().push((endpoint.to_string(), cut.clone()));
        Link { delay: Arc::new(|| Duration::ZERO), cut }
    }
}
