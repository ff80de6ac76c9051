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

/// The registry key of one life of a worker.
pub fn worker_key(life: &WorkerLife) -> String {
    let WorkerLife { id, incarnation } = life;
    format!("{WORKERS}{id}/{}", incarnation.0)
}
