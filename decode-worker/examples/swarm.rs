//! Many mock workers in one process, that register with a cluster, renew, leave and come back: what
//! `bench/swarm.py` measures gateways and routers with.
//!
//! Each second it prints a line of JSON: how many workers live, how many of them must be known
//! everywhere (`settled`), how many lives there were, and whether the NATS server is there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use engine::{EngineConfig, MockRunner, MockTimes, MockVocabulary, Runner};
use kv_transfer::Ways;
use messaging::{DataPlane, NatsOptions, Network, TcpOptions};
use parking_lot::Mutex;
use protocol::v1::{ModelCard, Role};
use protocol::{Incarnation, WorkerLife};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use worker::{EnginePlace, Worker, WorkerConfig};

/// A worker that has been there for so long, and with it the NATS server, must be known everywhere.
const SETTLING: Duration = Duration::from_secs(5);

/// So long before a worker leaves it is not counted as settled any more, because counts are taken at
/// other times elsewhere.
const FAREWELL: Duration = Duration::from_secs(3);

/// Between the lives of a worker.
const AWAY: Duration = Duration::from_secs(2);

const SECOND: Duration = Duration::from_secs(1);

/// Runs mock workers until it is killed.
#[derive(Parser)]
struct Arguments {
    /// The cluster's NATS server.
    #[arg(long)]
    nats: String,
    /// Begins the names of its workers.
    #[arg(long)]
    name: String,
    /// How many there are.
    #[arg(long, default_value_t = 250)]
    workers: usize,
    /// How often one of them leaves, to come back in another life.
    #[arg(long, default_value_t = 60.0)]
    leaves_per_minute: f64,
    /// The model directory whose tokenizer they show.
    #[arg(long, default_value = "models/demo")]
    model: String,
}

struct Swarm {
    network: Network,
    name: String,
    card: ModelCard,
    vocabulary: MockVocabulary,
    places: Vec<Mutex<Place>>,
}

/// A worker's present life, if it has one.
#[derive(Default)]
struct Place {
    lives: u64,
    leave: Option<CancellationToken>,
    /// For how long it has lived while the NATS server was there.
    known_for: Duration,
    is_leaving: bool,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let Arguments { nats, name, workers, leaves_per_minute, model } = Arguments::parse();
    let mut network = Network::connect(NatsOptions::new(nats)).await?;
    network.data_plane = DataPlane::tcp(TcpOptions::default())?;
    let vocabulary = MockVocabulary::load(Path::new(&model))?;
    let runner = MockRunner::new(MockTimes::default(), vocabulary.clone());
    let card = worker::load_card(Path::new(&model), "swarm", runner.facts())?;
    let places = (0..workers).map(|_| Mutex::default()).collect();
    let swarm = Arc::new(Swarm { network, name, card, vocabulary, places });
    for index in 0..workers {
        tokio::spawn(live(swarm.clone(), index));
    }
    tokio::spawn(part(swarm.clone(), leaves_per_minute));
    report(&swarm).await;
    Ok(())
}

/// One worker's lives.
async fn live(swarm: Arc<Swarm>, index: usize) {
    loop {
        let leave = CancellationToken::new();
        if let Err(error) = live_once(&swarm, index, leave.clone()).await {
            eprintln!("worker {index}: {error}");
            std::process::exit(1);
        }
        {
            let mut place = swarm.places[index].lock();
            *place = Place { lives: place.lives, ..Default::default() };
        }
        tokio::time::sleep(AWAY).await;
    }
}

async fn live_once(swarm: &Swarm, index: usize, leave: CancellationToken) -> Result<(), Failure> {
    let worker = Worker::start(WorkerConfig {
        life: WorkerLife {
            id: format!("{}-{index}", swarm.name).as_str().into(),
            incarnation: Incarnation::begin(),
        },
        role: Role::Decode,
        runner: Box::new(MockRunner::new(MockTimes::default(), swarm.vocabulary.clone())),
        place: EnginePlace::Task,
        engine: EngineConfig {
            block_size: 4,
            kv_blocks: 64,
            max_num_seqs: 4,
            max_num_batched_tokens: 64,
            waiting_sequences_max: 16,
            speculative_tokens: 0,
            step_target: None,
            shares_memory: false,
        },
        card: swarm.card.clone(),
    })?;
    {
        let mut place = swarm.places[index].lock();
        place.lives += 1;
        place.leave = Some(leave.clone());
    }
    Ok(decode_worker::run(worker, swarm.network.clone(), Ways::default(), leave).await?)
}

/// Has one worker after the other leave.
async fn part(swarm: Arc<Swarm>, leaves_per_minute: f64) {
    let mut rng = StdRng::seed_from_u64(swarm.name.bytes().map(u64::from).sum());
    let mut interval = tokio::time::interval(Duration::from_secs_f64(60.0 / leaves_per_minute));
    loop {
        interval.tick().await;
        let place = &swarm.places[rng.random_range(0..swarm.places.len())];
        let leave = {
            let mut place = place.lock();
            place.is_leaving = place.leave.is_some();
            place.leave.clone()
        };
        if let Some(leave) = leave {
            tokio::spawn(async move {
                tokio::time::sleep(FAREWELL).await;
                leave.cancel();
            });
        }
    }
}

async fn report(swarm: &Swarm) {
    let mut interval = tokio::time::interval(SECOND);
    loop {
        interval.tick().await;
        let is_connected = swarm.network.is_connected();
        let (mut living, mut settled, mut lives) = (0, 0, 0);
        for place in &swarm.places {
            let mut place = place.lock();
            lives += place.lives;
            if place.leave.is_some() {
                living += 1;
                place.known_for += if is_connected { SECOND } else { Duration::ZERO };
                settled += usize::from(place.known_for > SETTLING && !place.is_leaving);
            }
        }
        println!(
            "{}",
            json!({"living": living, "settled": settled, "lives": lives, "connected": is_connected})
        );
    }
}
