//! Tells the cluster that this worker is there, how busy it is, and what its prefix cache holds.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::KvEvent;
use messaging::Network;
use prost::Message;
use protocol::{BlockHash, WorkerLife, hashes_to_bytes, subjects, v1};
use tokio::time::Instant;

use crate::host::KvEventBatch;
use crate::{Worker, WorkerError, admission};

/// Between two load reports.
const LOAD_REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Reports between two looks at who else was registered at the same time as this worker …
const REPORTS_PER_LOOK: u32 = 10;

/// … and how often it looks: news of the registry may be late.
const LOOKS: u32 = 10;

/// At least between two that say that the worker became idle.
const LOAD_REPORT_PAUSE: Duration = Duration::from_millis(2);

/// Announces from when the engine is warm, which listens at `address`, until it stops, or not at all
/// where it does not go with the cluster's workers; then says which. The registry entry goes when
/// this future is dropped.
pub async fn run(
    worker: &Worker,
    registration: &v1::WorkerRegistration,
    address: String,
    network: &Network,
) -> WorkerError {
    let Worker { host, presence, .. } = worker;
    tokio::select! {
        biased;
        () = host.warm() => {}
        () = host.stopped() => return WorkerError::EngineStopped(host.take_failure()),
    }
    if let Some(sentence) = admission::conflict(registration, &network.registry) {
        return WorkerError::Refused(sentence);
    }
    let mut entry = RegistryEntry::put(registration, network);
    presence.set_registered(address);
    let Some(mut kv_events) = host.take_kv_events() else {
        return WorkerError::EngineStopped(None);
    };
    let mut reports = 0u32;
    let mut interval = tokio::time::interval(LOAD_REPORT_INTERVAL);
    let (mut last_report, mut is_news_due) = (Instant::now(), false);
    loop {
        tokio::select! {
            biased;
            () = host.stopped() => return WorkerError::EngineStopped(host.take_failure()),
            () = presence.draining(), if !entry.is_draining => entry.put_draining(registration),
            // Before load reports, which say how many there are.
            Some(batch) = kv_events.recv() => {
                let events = kv_event_message(registration, &batch);
                network.bus.publish(subjects::KV_EVENTS, events.encode_to_vec().into());
            }
            // Not left to the interval: a worker that only seems busy costs its prefix cache.
            () = host.became_idle(), if !is_news_due => is_news_due = true,
            () = tokio::time::sleep_until(last_report + LOAD_REPORT_PAUSE), if is_news_due => {
                publish_load(worker, registration, network);
                (last_report, is_news_due) = (Instant::now(), false);
            }
            _ = interval.tick() => {
                // A worker without work would go on being given some.
                if let Some(lost) = host.lost() {
                    return WorkerError::EngineStopped(Some(lost));
                }
                publish_load(worker, registration, network);
                reports = reports.saturating_add(1);
                let is_look_due =
                    reports.is_multiple_of(REPORTS_PER_LOOK) && reports <= LOOKS * REPORTS_PER_LOOK;
                if is_look_due
                    && let Some(sentence) =
                        admission::conflict_with_elder(registration, &network.registry)
                {
                    return WorkerError::Refused(sentence);
                }
            }
        }
    }
}

struct RegistryEntry {
    key: String,
    network: Network,
    is_draining: bool,
}

impl RegistryEntry {
    fn put(registration: &v1::WorkerRegistration, network: &Network) -> Self {
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        let key = subjects::worker_key(&life);
        network.registry.put(&key, registration.encode_to_vec().into());
        Self { key, network: network.clone(), is_draining: false }
    }

    fn put_draining(&mut self, registration: &v1::WorkerRegistration) {
        self.is_draining = true;
        let draining = v1::WorkerRegistration { draining: true, ..registration.clone() };
        self.network.registry.put(&self.key, draining.encode_to_vec().into());
    }
}

impl Drop for RegistryEntry {
    fn drop(&mut self) {
        self.network.registry.delete(&self.key);
    }
}

fn publish_load(worker: &Worker, registration: &v1::WorkerRegistration, network: &Network) {
    let report = load_report(worker, registration);
    network.bus.publish(subjects::LOAD, report.encode_to_vec().into());
}

fn load_report(worker: &Worker, registration: &v1::WorkerRegistration) -> v1::LoadReport {
    let host = &worker.host;
    let load = host.load();
    v1::LoadReport {
        worker_id: registration.worker_id.clone(),
        incarnation: registration.incarnation,
        running_sequences: load.running as u32,
        waiting_sequences: load.waiting as u32,
        waiting_prompt_tokens: load.waiting_prompt_tokens as u64,
        free_blocks: load.blocks.free as u32,
        cached_blocks: load.blocks.cached as u32,
        used_blocks: load.blocks.used as u32,
        sequence_tokens: load.sequence_tokens as u64,
        latency: host.latency(),
        kv_sequence: host.kv_sequence(),
        transfers: worker.transfers.models(),
    }
}

fn kv_event_message(registration: &v1::WorkerRegistration, batch: &KvEventBatch) -> v1::KvEvents {
    // A block stored and evicted within one step is not there; one evicted and stored again is.
    let mut last: BTreeMap<BlockHash, bool> = BTreeMap::new();
    for event in &batch.events {
        match event {
            KvEvent::Stored(hash) => last.insert(*hash, true),
            KvEvent::Removed(hash) => last.insert(*hash, false),
        };
    }
    let (stored, removed): (Vec<_>, Vec<_>) =
        last.into_iter().partition(|(_, is_stored)| *is_stored);
    let hashes = |entries: Vec<(BlockHash, bool)>| {
        let hashes: Vec<BlockHash> = entries.into_iter().map(|(hash, _)| hash).collect();
        hashes_to_bytes(&hashes)
    };
    v1::KvEvents {
        worker_id: registration.worker_id.clone(),
        incarnation: registration.incarnation,
        sequence: batch.sequence,
        stored: hashes(stored),
        removed: hashes(removed),
    }
}
