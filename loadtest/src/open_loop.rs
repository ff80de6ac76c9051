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
        while let Some(ended) = running.try_join_next() {
            // A panic is a defect and ends the run; nothing else cuts a turn short here.
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        // The second is for rates at which this thread itself falls behind.
        if running.len() >= running_max || Instant::now() >= window.drain_end {
            shared.recorder.drop_arrival(due);
        } else {
            // Begun here, so that it counts even if the run ends before its task has run.
            let measurement = Measurement::begin(shared.recorder.clone(), due);
            running.spawn_on(turn(shared.clone(), measurement), runtime);
        }
    }
    running
}

/// False if the run was stopped.
fn wait_until(due: Instant, stopped: &Receiver<Infallible>) -> bool {
    let left = due.saturating_duration_since(Instant::now());
    stopped.recv_timeout(left) == Err(RecvTimeoutError::Timeout)
}

async fn turn(shared: Arc<Shared>, measurement: Measurement) {
    let conversation = shared.conversations.next();
    if let Some(conversation) = shared.turn(measurement, conversation).await {
        shared.conversations.give_back(conversation);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::args::Arrivals;
    use crate::client::Client;
    use crate::conversation::{Conversations, PromptWords};
    use crate::random::{Purpose, random};
    use crate::recorder::{Objectives, Recorder, Window};
    use crate::request::RequestSettings;
    use crate::target::Target;

    #[tokio::test(flavor = "multi_thread")]
    async fn arrivals_beyond_the_limit_are_dropped_and_counted() {
        // Connections to it are accepted by the system, and never answered.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::parse(&silent.local_addr().unwrap().to_string()).unwrap();
        let model = "m".into();
        let settings = RequestSettings { model, output_tokens: 1, ignore_eos: true, seed: 0 };
        let window =
            Window::from_now(Duration::ZERO, Duration::from_millis(20), Duration::from_secs(10));
        let recorder = Arc::new(Recorder::new(window, Objectives::default()));
        let shared = Shared {
            client: Client::connect(&target, None, true).await.unwrap(),
            settings,
            conversations: Conversations::new(0, 1, PromptWords { prefix: 0, question: 5 }),
            recorder: recorder.clone(),
        };
        let arrivals = ArrivalTimes::new(Arrivals::Constant, 1000.0, random(0, Purpose::Arrivals));
        let stop = CancellationToken::new();
        let mut running = run(Arc::new(shared), arrivals, 3, &stop).await;
        assert_eq!(running.len(), 3);
        running.shutdown().await;
        let ended = recorder.total().endings;
        assert_eq!((ended.dropped, ended.unfinished, ended.total()), (17, 3, 20));
    }
}
