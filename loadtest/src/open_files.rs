//! Each connection is an open file, of which a process may have only so many.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that are not connections.
const OTHER_FILES: u64 = 64;

/// More requests than this are never under way at once; more arrivals are dropped, and counted.
const RUNNING_MAX: u64 = 65_536;

/// Raises the limit as far as the system lets this user, and gives how many requests may be under
/// way at once.
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let files = if raised { limit.maximum } else { limit.current };
    // No limit is `None`.
    let running = files.map_or(RUNNING_MAX, |files| files.saturating_sub(OTHER_FILES));
    running.clamp(1, RUNNING_MAX) as usize
}
