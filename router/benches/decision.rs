//! How long a routing decision takes: a prompt of 2,000 blocks among 10, 100 and 1,000 workers; also
//! where nothing is known of prefix caches, as in a gateway that decides without a router, and where it is
//! known where workers are: on GPUs of hosts with eight of them, all linked to each other.
//!
//! Each worker holds the blocks of the prompts it has seen. All share a system prompt of 100
//! blocks; some have seen the beginning of this conversation. Prompts come in turn from many
//! conversations, so that the index is not in the CPU's cache because of the last question.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use protocol::v1::{self, Gpu, Hardware, LatencyModel, Nic, Place, Role};
use protocol::{BlockHash, hashes_to_bytes};
use router::{Core, Question};

const PROMPT_BLOCKS: usize = 2_000;
const SHARED_BLOCKS: usize = 100;
const CONVERSATIONS: usize = 64;
const BLOCKS_PER_WORKER: u32 = 20_000;

fn hash(conversation: usize, block: usize) -> BlockHash {
    let conversation = if block < SHARED_BLOCKS { usize::MAX } else { conversation };
    let mut bytes = [0; 16];
    let digest = protocol::BlockHasher::new("bench", "", 2)
        .block(BlockHash([0; 16]), &[conversation as u32, block as u32]);
    bytes.copy_from_slice(&digest.0);
    BlockHash(bytes)
}

fn question(conversation: usize) -> Question {
    let blocks = (0..PROMPT_BLOCKS).map(|block| hash(conversation, block)).collect();
    Question {
        model: "m".into(),
        prompt_blocks: vec![("n".into(), blocks)],
        prompt_tokens: PROMPT_BLOCKS * 16 + 5,
        max_tokens: 500,
        ..Default::default()
    }
}

fn report(worker: usize) -> v1::LoadReport {
    v1::LoadReport {
        worker_id: name(worker),
        running_sequences: (worker % 17) as u32,
        sequence_tokens: 1000 * (worker % 17) as u64,
        waiting_prompt_tokens: 100 * (worker % 5) as u64,
        free_blocks: 5_000,
        latency: Some(LatencyModel {
            step_us: 5_000.0,
            prefill_token_us: 50.0 + (worker % 3) as f32,
            prefill_attended_us: 0.001,
            sequence_us: 20.0,
            attended_us: 0.01,
            prefill_steps: 1_000,
            decode_steps: 1_000,
        }),
        kv_sequence: 1,
        ..Default::default()
    }
}

fn name(worker: usize) -> String {
    format!("worker-{worker:04}")
}

/// Half of the workers prefill. Worker w has seen some of the conversations, each up to its own
/// depth.
fn core(workers: usize, has_index: bool, has_places: bool, now: u64) -> Core {
    let mut core = Core::default();
    for worker in 0..workers {
        let role = if worker % 2 == 0 { Role::Prefill } else { Role::Decode };
        core.register(
            v1::WorkerRegistration {
                worker_id: name(worker),
                role: role.into(),
                model: "m".into(),
                numerics_id: "n".into(),
                block_size: 16,
                kv_blocks: BLOCKS_PER_WORKER,
                block_bytes: 1 << 21,
                max_num_batched_tokens: 8192,
                hardware: has_places.then(|| hardware(worker)),
                ..Default::default()
            },
            now,
        );
        let _kept = core.report(report(worker), now);
        if !has_index {
            continue;
        }
        let mut stored: Vec<BlockHash> = (0..SHARED_BLOCKS).map(|block| hash(0, block)).collect();
        for conversation in (0..CONVERSATIONS).filter(|c| (c * 7 + worker) % 11 == 0) {
            let depth = SHARED_BLOCKS
                + (worker * 131 + conversation * 37) % (PROMPT_BLOCKS - SHARED_BLOCKS);
            stored.extend((SHARED_BLOCKS..depth).map(|block| hash(conversation, block)));
        }
        let _kept = core.kv_events(&v1::KvEvents {
            worker_id: name(worker),
            stored: hashes_to_bytes(&stored),
            ..Default::default()
        });
    }
    core
}

fn hardware(worker: usize) -> Hardware {
    let (host, pci_bus_id) = (worker / 8, format!("0000:{:02x}:00.0", worker % 8));
    let uuid = format!("GPU-{worker}");
    let place = Place {
        host_id: vec![host as u8 + 1; 16].into(),
        process_id: vec![worker as u8; 16].into(),
        device: uuid.clone(),
        pci_bus_id: pci_bus_id.clone(),
    };
    let gpu =
        Gpu { uuid, pci_bus_id, nvlink_switch_bytes_per_s: 450_000_000_000, ..Default::default() };
    let nic = Nic { bytes_per_s: 12_500_000_000, ..Default::default() };
    Hardware {
        place: Some(place),
        gpus: vec![gpu],
        nics: vec![nic],
        kv_ways: vec!["cuda".into(), "tcp".into()],
        ..Default::default()
    }
}

/// A router that decides 1,000 times per second and hears from each worker every 100 ms.
struct Life {
    core: Core,
    workers: usize,
    now: u64,
    decisions: usize,
}

impl Life {
    fn new(workers: usize, has_index: bool, has_places: bool) -> Self {
        let now = 0;
        Self { core: core(workers, has_index, has_places, now), workers, now, decisions: 0 }
    }

    /// Decides once, and says how long that took, without the reports between decisions.
    fn decide(&mut self, question: &Question) -> Duration {
        self.decisions += 1;
        self.now += 1_000;
        let phase = self.decisions % 100;
        for worker in (0..self.workers).filter(|worker| worker % 100 == phase) {
            let _kept = self.core.report(report(worker), self.now);
        }
        let began = Instant::now();
        black_box(self.core.route(question, self.now)).expect("a route");
        began.elapsed()
    }
}

fn decide(c: &mut Criterion) {
    let questions: Vec<Question> = (0..CONVERSATIONS).map(question).collect();
    let kinds =
        [("decision", true, false), ("without an index", false, false), ("places", true, true)];
    for (name, has_index, has_places) in kinds {
        let mut group = c.benchmark_group(name);
        for workers in [10, 100, 1000] {
            let mut life = Life::new(workers, has_index, has_places);
            let mut times: Vec<Duration> =
                (0..20_000).map(|index| life.decide(&questions[index % CONVERSATIONS])).collect();
            times.sort();
            let percentile = |p: usize| times[times.len() * p / 100];
            println!(
                "{name}, {workers} workers: p50 {:?}, p99 {:?}",
                percentile(50),
                percentile(99)
            );
            let mut next = questions.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(workers), |bencher| {
                bencher.iter_custom(|decisions| {
                    (0..decisions).map(|_| life.decide(next.next().expect("a cycle"))).sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decide);
criterion_main!(benches);
