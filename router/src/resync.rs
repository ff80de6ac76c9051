//! Fetches snapshots of workers' prefix caches where messages were missed.

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use messaging::DataPlane;
use protocol::v1::{GetKvSnapshotRequest, WorkerRegistration, worker_client::WorkerClient};
use protocol::{BlockHash, MESSAGE_BYTES_MAX, WorkerLife, hashes_from_bytes};
use tokio::task::JoinSet;

/// Snapshots that are fetched at once; others wait.
const FETCHES_MAX: usize = 16;

/// How long a worker may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Before a snapshot that failed is asked for again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Snapshots on their way, one per worker at most.
pub struct Resync {
    data_plane: DataPlane,
    fetches: JoinSet<(WorkerLife, Option<Snapshot>)>,
    wanted: HashSet<WorkerLife>,
    /// Those of `wanted` that wait for a place among the fetches; one per worker at most.
    waiting: VecDeque<(WorkerLife, Source)>,
}

/// Where a snapshot comes from, and how many blocks it may have.
struct Source {
    endpoint: String,
    blocks_max: usize,
}

/// What a worker's prefix cache held.
pub struct Snapshot {
    /// The number of the first events that are not contained.
    pub next_sequence: u64,
    /// The blocks.
    pub hashes: Vec<BlockHash>,
}

impl Resync {
    /// Nothing on its way.
    pub fn new(data_plane: DataPlane) -> Self {
        Self {
            data_plane,
            fetches: JoinSet::new(),
            wanted: HashSet::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Asks a worker for its snapshot, unless that is under way.
    pub fn want(&mut self, worker: WorkerLife, registration: &WorkerRegistration) {
        if self.wanted.insert(worker.clone()) {
            let endpoint = registration.data_endpoint.clone();
            let source = Source { endpoint, blocks_max: registration.kv_blocks as usize };
            self.waiting.push_back((worker, source));
            self.begin();
        }
    }

    /// The next snapshot that came; none where a worker did not give one, after a pause. Waits for
    /// ever while nothing is on its way.
    pub async fn next(&mut self) -> (WorkerLife, Option<Snapshot>) {
        loop {
            match self.fetches.join_next().await {
                Some(Ok((worker, snapshot))) => {
                    self.wanted.remove(&worker);
                    self.begin();
                    return (worker, snapshot);
                }
                Some(Err(error)) => tracing::error!(%error, "a snapshot's fetch was cut short"),
                None => std::future::pending().await,
            }
        }
    }

    fn begin(&mut self) {
        while self.fetches.len() < FETCHES_MAX {
            let Some((worker, source)) = self.waiting.pop_front() else { return };
            let data_plane = self.data_plane.clone();
            self.fetches.spawn(async move {
                let fetching =
                    AssertUnwindSafe(fetch(&data_plane, &source, &worker)).catch_unwind();
                let snapshot = match tokio::time::timeout(FETCH_TIMEOUT, fetching).await {
                    Ok(Ok(Ok(snapshot))) => Some(snapshot),
                    Ok(Ok(Err(error))) => failed(&worker, &error.to_string()).await,
                    Ok(Err(_panicked)) => failed(&worker, "a defect").await,
                    Err(_) => failed(&worker, "no answer in time").await,
                };
                (worker, snapshot)
            });
        }
    }
}

async fn failed(worker: &WorkerLife, error: &str) -> Option<Snapshot> {
    tracing::warn!(worker = %worker.id, error, "cannot fetch a snapshot of its prefix cache");
    tokio::time::sleep(RETRY_DELAY).await;
    None
}

async fn fetch(
    data_plane: &DataPlane,
    source: &Source,
    worker: &WorkerLife,
) -> Result<Snapshot, Box<dyn std::error::Error + Send + Sync>> {
    let channel = data_plane.connect(&source.endpoint).await?;
    let mut client = WorkerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut parts = client.get_kv_snapshot(GetKvSnapshotRequest {}).await?.into_inner();
    let mut snapshot: Option<Snapshot> = None;
    while let Some(part) = parts.message().await? {
        if part.incarnation != worker.incarnation.0 {
            return Err("another life of the worker answered".into());
        }
        let snapshot = snapshot
            .get_or_insert(Snapshot { next_sequence: part.next_sequence, hashes: Vec::new() });
        if snapshot.next_sequence != part.next_sequence {
            return Err("its parts belong to different snapshots".into());
        }
        snapshot.hashes.extend(hashes_from_bytes(&part.hashes));
        if snapshot.hashes.len() > source.blocks_max {
            return Err("it has more blocks than its pool".into());
        }
    }
    snapshot.ok_or_else(|| "the snapshot has no parts".into())
}
