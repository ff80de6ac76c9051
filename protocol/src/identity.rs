//! Who is who: workers and their lives.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A worker's name, stable over restarts where its operator keeps it so.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for WorkerId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One life of a worker. What was said of another life (blocks, leases, load) does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The life that begins now: microseconds since the epoch, so that a later life is larger.
    pub fn begin() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since_epoch.as_micros() as u64)
    }
}

/// A worker and which of its lives is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerLife {
    /// The worker.
    pub id: WorkerId,
    /// Its life.
    pub incarnation: Incarnation,
}

impl WorkerLife {
    /// The life that messages name by these two fields.
    pub fn new(worker_id: &str, incarnation: u64) -> Self {
        Self { id: worker_id.into(), incarnation: Incarnation(incarnation) }
    }
}
