//! The names under which messages travel on the bus and entries lie in the registry.

use crate::WorkerLife;

/// Routing requests (`RouteRequest` -> `RouteReply`) to one life of a router.
pub fn route(router_id: &str, incarnation: u64) -> String {
    format!("route.{router_id}.{incarnation}")
}

/// Workers that someone found dead, silent or hung (`Suspicion`).
pub const SUSPECT: &str = "suspect";

/// What routers gave away lately (`Dispatches`).
pub const DISPATCHES: &str = "dispatches";

/// Load reports of all workers.
pub const LOAD: &str = "load";

/// KV events of all workers.
pub const KV_EVENTS: &str = "kv";

/// Registry entries of workers begin with this.
pub const WORKERS: &str = "workers/";

/// Registry entries of routers begin with this.
pub const ROUTERS: &str = "routers/";

/// The registry key of one life of a router.
pub fn router_key(router_id: &str, incarnation: u64) -> String {
    format!("{ROUTERS}{router_id}/{incarnation}")
}

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
