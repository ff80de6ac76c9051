//! What a simulation does to messages and connections. In production there are none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio_util::sync::CancellationToken;

/// Bytes that travel as one piece at most.
const PIECE_BYTES: usize = 16 * 1024;

/// Decides what befalls the messages of a bus and the connections of a data plane.
pub trait Faults: Send + Sync {
    /// What becomes of a message: it arrives once per entry, that much later and with that
    /// content.
    fn carry(&self, subject: &str, payload: Bytes) -> Vec<(Duration, Bytes)>;

    /// What befalls a new connection to an endpoint.
    fn link(&self, endpoint: &str) -> Link;
}

/// What befalls one connection. Its bytes keep their order, as those of TCP do.
pub struct Link {
    /// Called for each piece that travels: how long that takes.
    pub delay: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// Cuts both directions, with whatever is under way.
    pub cut: CancellationToken,
}

/// Joins two ends over a link.
pub(crate) fn join(link: &Link, a: DuplexStream, b: DuplexStream) {
    let ((a_read, a_write), (b_read, b_write)) = (tokio::io::split(a), tokio::io::split(b));
    tokio::spawn(relay(a_read, b_write, link.delay.clone(), link.cut.clone()));
    tokio::spawn(relay(b_read, a_write, link.delay.clone(), link.cut.clone()));
}

async fn relay(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    delay: Arc<dyn Fn() -> Duration + Send + Sync>,
    cut: CancellationToken,
) {
    let copy = async {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match from.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(bytes) => {
                    tokio::time::sleep(delay()).await;
                    if to.write_all(&piece[..bytes]).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    cut.run_until_cancelled(copy).await;
    // The other direction may still have something to say.
    let _gone = to.shutdown().await;
}
