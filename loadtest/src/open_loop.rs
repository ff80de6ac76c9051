//! The open loop: turns are sent when they are due, whatever the server does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::arrivals::ArrivalTimes;
use crate::measurement::Measurement;
use crate::turn::Shared;

/// Sends turns until the window ends or `stop`; gives those that still run.
pub async fn run(
    shared: Arc<Shared>,
    arrivals: ArrivalTimes,
    running_max: usize,
    stop: &CancellationToken,
) -> JoinSet<()> {
    // Nothing is ever sent: its sender's end tells the pacer to stop.
    let (go, stopped) = sync_channel::<Infallible>(1);
    let runtime = Handle::current();
    // A thread of its own, because a runtime's timers only have milliseconds.
    let pace = move || pace(&shared, arrivals, running_max, &stopped, &runtime);
    let mut pacer = tokio::task::spawn_blocking(pace);
    let ended = tokio::select! {
        ended = &mut pacer => ended,
        () = stop.cancelled() => {
            drop(go);
            pacer.await
        }
    };
    ended.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
}

fn pace(
    shared: &Arc<Shared>,
    arrivals: ArrivalTimes,
    running_max: usize,
    stopped: &Receiver<Infallible>,
    runtime: &Handle,
) -> JoinSet<()> {
    let window = shared.recorder.window;
    let mut running = JoinSet::new();
    for since_begin in arrivals {
        let due = window.begin + since_begin;
        if due >= window.end || !wait_until(due, stopped) {
            break;
        }
        while running.try_join_next().is_some() {}
        if running.len() >= running_max {
            shared.recorder.drop_arrival(due);
        } else {
            running.spawn_on(turn(shared.clone(), due), runtime);
        }
    }
    running
}

/// False if the run was stopped.
fn wait_until(due: Instant, stopped: &Receiver<Infallible>) -> bool {
    let left = due.saturating_duration_since(Instant::now());
    stopped.recv_timeout(left) == Err(RecvTimeoutError::Timeout)
}

async fn turn(shared: Arc<Shared>, due: Instant) {
    let measurement = Measurement::begin(shared.recorder.clone(), due);
    let conversation = shared.conversations.next();
    if let Some(conversation) = shared.turn(measurement, conversation).await {
        shared.conversations.give_back(conversation);
    }
}
