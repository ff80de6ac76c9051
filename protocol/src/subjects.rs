//! The names under which messages travel on the bus and entries lie in the registry.

use crate::WorkerLife;

/// Routing requests (`RouteRequest` -> `RouteReply`).
pub const ROUTE: &str = "route";

/// Load reports of all workers.
pub const LOAD: &str = "load";

/// KV events of all workers.
pub const KV_EVENTS: &str = "kv";

/// Registry entries of workers begin with this.
pub const WORKERS: &str = "workers/";

/// Reads the registry key of a worker.
pub fn life_of_worker_key(key: &str) -> Option<WorkerLife> {
    let (worker_id, incarnation) = key.strip_prefix(WORKERS)?.rsplit_once('/')?;
    Some(WorkerLife::new(worker_id, incarnation.parse().ok()?))
}

/// The registry key of one life of a worker.
pub fn worker_key(life: &WorkerLife) -> String {
    let WorkerLife { id, incarnation } = life;
    format!("{WORKERS}{id}/{}", incarnation.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_keys_round_trip() {
        let life = WorkerLife::new("rack/7", 12);
        assert_eq!(life_of_worker_key(&worker_key(&life)), Some(life));
        assert_eq!(life_of_worker_key("workers/a/b"), None);
        assert_eq!(life_of_worker_key("a/1"), None);
    }
}
