//! The way of sequences' news from the engine's thread to whoever asked for it.

use engine::SequenceOutput;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Where sequences' news goes. Sequences with the same channel share one message per step. When its
/// taker is gone or its queue full, its sequences are given up, and the taker is told.
#[derive(Clone)]
pub struct Outputs {
    sender: mpsc::Sender<Vec<SequenceOutput>>,
    overrun: CancellationToken,
}

/// The taker's end of `Outputs`.
pub struct News {
    receiver: mpsc::Receiver<Vec<SequenceOutput>>,
    overrun: CancellationToken,
}

/// A channel for news that may lag `steps_max` steps behind the engine.
pub fn outputs(steps_max: usize) -> (Outputs, News) {
    let (sender, receiver) = mpsc::channel(steps_max);
    let overrun = CancellationToken::new();
    (Outputs { sender, overrun: overrun.clone() }, News { receiver, overrun })
}

impl Outputs {
    /// Sends one step's news without waiting. False: nobody takes it, and the taker is told so.
    pub(crate) fn send(&self, news: Vec<SequenceOutput>) -> bool {
        let sent = self.sender.try_send(news).is_ok();
        if !sent {
            self.overrun.cancel();
        }
        sent
    }

    /// Whether both lead to the same taker.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.sender.same_channel(&other.sender)
    }
}

impl News {
    /// The next step's news; none once the engine has given these sequences up, because the queue
    /// was full, or has stopped.
    pub async fn next(&mut self) -> Option<Vec<SequenceOutput>> {
        tokio::select! {
            biased;
            () = self.overrun.cancelled() => None,
            news = self.receiver.recv() => news,
        }
    }

    /// Steps that wait to be taken.
    pub fn waiting_steps(&self) -> usize {
        self.receiver.len()
    }
}
