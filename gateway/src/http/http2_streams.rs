//! The requests of an HTTP/2 connection: counted, so that idle connections can be closed, and each
//! watched, because the connection goes on although one of its requests' clients takes nothing.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

/// Runs the requests of one connection.
#[derive(Clone)]
pub struct Streams {
    stall_max: Duration,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Streams {
    /// None yet. One whose client takes nothing for `stall_max` is reset.
    pub fn new(stall_max: Duration) -> Self {
        Self { stall_max, counts: Arc::default() }
    }

    /// Waits until there was no request for so long.
    pub async fn idle(self, period: Duration) {
        loop {
            let begun = self.counts.begun.load(Ordering::Relaxed);
            let is_idle = begun == self.counts.ended.load(Ordering::Relaxed);
            sleep(period).await;
            if is_idle && begun == self.counts.begun.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    async fn run(self, stream: impl Future<Output = ()>) {
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
        let taking = Arc::<Taking>::default();
        let stream = pin!(TAKING.scope(taking.clone(), stream));
        tokio::select! {
            biased;
            () = stream => {}
            () = taking.stalled(self.stall_max) => {
                tracing::debug!("a client takes nothing of its answer, resetting the stream");
            }
        }
        self.counts.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(self.clone().run(stream));
    }
}

tokio::task_local! {
    /// Of the request that the task runs.
    static TAKING: Arc<Taking>;
}

/// Since when a part of the body waits for room with the client. The library asks for the next part
/// only when there is some.
#[derive(Default)]
struct Taking {
    waits_since: Mutex<Option<Instant>>,
}

impl Taking {
    async fn stalled(&self, max: Duration) {
        loop {
            let since = self.waits_since.lock().unwrap_or_else(Instant::now);
            sleep_until(since + max).await;
            if *self.waits_since.lock() == Some(since) {
                return;
            }
        }
    }
}

/// A response whose client is watched.
pub fn watched(response: Response) -> Response {
    response.map(|body| Body::new(Watched(body)))
}

struct Watched(Body);

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.0).poll_frame(cx);
        let waits_since = matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now);
        // Elsewhere nobody watches.
        let _ = TAKING.try_with(|taking| *taking.waits_since.lock() = waits_since);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_is_after_the_last_request() {
        let streams = Streams::new(Duration::from_secs(30));
        let began = Instant::now();
        streams.execute(sleep(Duration::from_secs(100)));
        streams.clone().idle(Duration::from_secs(10)).await;
        let idle_s = began.elapsed().as_secs();
        assert!((110..=121).contains(&idle_s), "{idle_s}");
    }
}
