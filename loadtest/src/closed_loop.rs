//! The closed loop: so many workers, each of which sends its next turn when the last one ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::measurement::Measurement;
use crate::turn::Shared;

/// A worker's pause after a turn without a whole answer: a server that refuses at once is not to be
/// flooded.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// Starts the workers; they end with their turn at the window's end.
pub fn start(shared: &Arc<Shared>, workers: u32) -> JoinSet<()> {
    let mut running = JoinSet::new();
    for _ in 0..workers {
        running.spawn(work(shared.clone()));
    }
    running
}

async fn work(shared: Arc<Shared>) {
    let end = shared.recorder.window.end;
    let mut conversation = None;
    while Instant::now() < end {
        let asked = conversation.take().unwrap_or_else(|| shared.conversations.begin());
        let measurement = Measurement::begin(shared.recorder.clone(), Instant::now());
        match shared.turn(measurement, asked).await {
            Some(answered) => conversation = Some(answered).filter(|one| one.goes_on()),
            None => tokio::time::sleep(FAILURE_PAUSE).await,
        }
    }
}
