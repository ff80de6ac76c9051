//! The way of sequences' news from the engine's thread to whoever asked for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::SequenceOutput;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Where sequences' news goes. What waits is taken together, also if it came from several steps, so
/// that a taker that is slower than the engine has less to do, not more. When its taker is gone or
/// too much waits, its sequences are given up, and the taker is told.
pub struct Outputs {
    mailbox: Arc<Mailbox>,
}

/// The taker's end of `Outputs`.
pub struct News {
    mailbox: Arc<Mailbox>,
}

struct Mailbox {
    /// Absent once its sequences are given up.
    waiting: Mutex<Option<Vec<SequenceOutput>>>,
    changed: Notify,
    waiting_max: usize,
    /// Clones of `Outputs`.
    senders: AtomicUsize,
}

/// A way for news of which so many pieces may wait.
pub fn outputs(waiting_max: usize) -> (Outputs, News) {
    let waiting = Mutex::new(Some(Vec::new()));
    let (changed, senders) = (Notify::new(), AtomicUsize::new(1));
    let mailbox = Arc::new(Mailbox { waiting, changed, waiting_max, senders });
    (Outputs { mailbox: mailbox.clone() }, News { mailbox })
}

impl Outputs {
    /// Sends one step's news without waiting. False: nobody takes it, and the taker is told so.
    pub(crate) fn send(&self, news: Vec<SequenceOutput>) -> bool {
        let mut waiting = self.mailbox.waiting.lock();
        if let Some(earlier) = &mut *waiting {
            if earlier.is_empty() {
                *earlier = news;
            } else if earlier.len() + news.len() <= self.mailbox.waiting_max {
                earlier.extend(news);
            } else {
                *waiting = None;
            }
        }
        let is_taken = waiting.is_some();
        drop(waiting);
        self.mailbox.changed.notify_one();
        is_taken
    }

    /// Whether both lead to the same taker.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mailbox, &other.mailbox)
    }
}

impl News {
    /// What came since the last call, at least one piece; none once the engine has given these
    /// sequences up, because too much waited, or nobody can ask for more.
    pub async fn next(&mut self) -> Option<Vec<SequenceOutput>> {
        loop {
            let is_forsaken = self.mailbox.senders.load(Ordering::Acquire) == 0;
            match &mut *self.mailbox.waiting.lock() {
                None => return None,
                Some(waiting) if !waiting.is_empty() => return Some(std::mem::take(waiting)),
                Some(_) if is_forsaken => return None,
                Some(_) => {}
            }
            self.mailbox.changed.notified().await;
        }
    }

    /// Pieces that wait to be taken.
    pub fn waiting(&self) -> usize {
        self.mailbox.waiting.lock().as_ref().map_or(0, Vec::len)
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.mailbox.waiting.lock().take();
    }
}

impl Clone for Outputs {
    fn clone(&self) -> Self {
        self.mailbox.senders.fetch_add(1, Ordering::Relaxed);
        Self { mailbox: self.mailbox.clone() }
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        if self.mailbox.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.mailbox.changed.notify_one();
        }
    }
}
