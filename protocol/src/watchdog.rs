//! How long a peer may say nothing, and a step may take, before a worker counts as failed.

use std::time::Duration;

use crate::v1::Progress;

/// Between two messages by which a worker says how its engine gets on, on each open stream.
pub const HEARTBEAT: Duration = Duration::from_millis(250);

/// A worker of which nothing is heard for this long is stopped or cut off.
pub const SILENCE_MAX: Duration = Duration::from_secs(2);

/// A step is not hung before it has taken this long...
const HUNG_US_MIN: u64 = 2_000_000;

/// ...and this many times what was predicted.
const HUNG_TIMES: u64 = 4;

impl Progress {
    /// Whether the present step takes so long that it will not end.
    pub fn is_hung(&self) -> bool {
        self.running_us > HUNG_US_MIN.max(self.predicted_us.saturating_mul(HUNG_TIMES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(running_us: u64, predicted_us: u64, expected: bool) {
        let progress = Progress { steps: 1, running_us, predicted_us };
        assert_eq!(progress.is_hung(), expected, "{progress:?}");
    }

    #[test]
    fn a_step_is_hung_after_two_seconds_and_four_times_its_prediction() {
        check(2_000_000, 0, false);
        check(2_000_001, 0, true);
        check(2_000_001, 600_000, false);
        check(2_400_001, 600_000, true);
        check(u64::MAX, u64::MAX, false);
    }
}
