//! The accept loop: so many connections at once, and an orderly end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::{self, ConnectionLimits};

/// Pause after an accept failed, which it does while file descriptors are short.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Serves until `shutdown`, then until the last request has ended. At the limit of connections,
/// further ones wait in the listener's queue.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
) {
    let places_max = limits.connections_max.min(Semaphore::MAX_PERMITS) as u32;
    let places = Arc::new(Semaphore::new(places_max as usize));
    let accepting = async {
        loop {
            let place = places.clone().acquire_owned().await;
            let stream = accept(&listener).await;
            let served = connection::serve(stream, app.clone(), limits, shutdown.clone());
            tokio::spawn(async move {
                served.await;
                drop(place);
            });
        }
    };
    let _: Option<()> = shutdown.run_until_cancelled(accepting).await;
    drop(listener);
    let _every_place = places.acquire_many(places_max).await;
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                without_delay(&stream);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Without this, small writes of a stream wait for the client's acknowledgements.
fn without_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}
