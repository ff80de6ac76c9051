//! The `Worker` service: what every worker tells about itself.

use std::sync::Arc;

use protocol::v1::worker_server::Worker;
use protocol::{BlockHash, WorkerLife, hashes_to_bytes, v1};
use tokio_stream::Iter;
use tonic::{Request, Response, Status};

use crate::EngineHost;

/// Hashes in one part of a snapshot: 1 MiB.
const HASHES_PER_PART: usize = 65_536;

/// Serves the model card and snapshots of the prefix cache.
pub struct WorkerService {
    card: v1::ModelCard,
    life: WorkerLife,
    host: Arc<EngineHost>,
}

impl WorkerService {
    /// A worker's service.
    pub fn new(card: v1::ModelCard, life: WorkerLife, host: Arc<EngineHost>) -> Self {
        Self { card, life, host }
    }
}

#[tonic::async_trait]
impl Worker for WorkerService {
    type GetKvSnapshotStream = Iter<std::vec::IntoIter<Result<v1::KvSnapshotPart, Status>>>;

    async fn get_model_card(
        &self,
        _request: Request<v1::GetModelCardRequest>,
    ) -> Result<Response<v1::ModelCard>, Status> {
        Ok(Response::new(self.card.clone()))
    }

    async fn get_kv_snapshot(
        &self,
        _request: Request<v1::GetKvSnapshotRequest>,
    ) -> Result<Response<Self::GetKvSnapshotStream>, Status> {
        let snapshot = self.host.kv_snapshot().await;
        let snapshot = snapshot.map_err(|error| Status::unavailable(error.to_string()))?;
        let part = |hashes: &[BlockHash]| {
            Ok(v1::KvSnapshotPart {
                incarnation: self.life.incarnation.0,
                next_sequence: snapshot.next_sequence,
                hashes: hashes_to_bytes(hashes),
            })
        };
        // An empty cache is said by one empty part.
        let (first, rest) = snapshot.hashes.split_at(snapshot.hashes.len().min(HASHES_PER_PART));
        let parts: Vec<_> =
            std::iter::once(first).chain(rest.chunks(HASHES_PER_PART)).map(part).collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }
}
