//! One connection: HTTP/1.1, or HTTP/2 for clients that begin with its preface. Each has deadlines, so
//! that no client holds anything for longer than it uses it.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use bytes::{Bytes, BytesMut};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::client_stream::ClientStream;
use super::http2_streams::{Streams, watched};

/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first read; most requests are shorter.
const FIRST_READ_BYTES: usize = 4096;

/// A request's head is read up to this size, and what cannot be written waits up to this size.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// What an HTTP/2 client may do at once; more is refused, or ends the connection.
const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Streams that a client began and reset before they were looked at (CVE-2023-44487), and those that
/// were reset for its mistakes (CVE-2025-8671).
const RESET_STREAMS_MAX: usize = 32;

/// An HTTP/2 client is asked for a sign of life so often, and has so long to give it.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an idle HTTP/2 client may take to agree to the end.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at once; more wait to be accepted.
    pub connections_max: usize,
    /// The next request's head must be complete so long after the last one's end; so idle connections
    /// are closed too. Longer than proxies keep theirs.
    pub idle: Duration,
    /// A client that takes nothing of what is written for so long is cut off.
    pub stall: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            idle: Duration::from_secs(75),
            stall: Duration::from_secs(30),
        }
    }
}

/// Serves a client until it or the server ends the connection.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut stream: S,
    app: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
) {
    let began = timeout(limits.idle, beginning(&mut stream));
    let Some(Ok(Ok(beginning))) = shutdown.run_until_cancelled(began).await else { return };
    let is_http2 = beginning.starts_with(PREFACE);
    let client = ClientStream::new(stream, beginning, limits.stall, shutdown.clone());
    let client = TokioIo::new(client);
    let ended = if is_http2 {
        let streams = Streams::new(limits.stall);
        let app = ServiceExt::<Request<Incoming>>::map_response(app, watched);
        let service = TowerToHyperService::new(app);
        let connection = http2(streams.clone()).serve_connection(client, service);
        drive(connection, streams.idle(limits.idle), &shutdown).await
    } else {
        let service = TowerToHyperService::new(app);
        let connection = http1(limits.idle).serve_connection(client, service);
        drive(connection, pending(), &shutdown).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// What comes first, enough to tell the version. Errors: it ended before.
async fn beginning(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(FIRST_READ_BYTES);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let compared = bytes.len().min(PREFACE.len());
        if compared == PREFACE.len() || bytes[..compared] != PREFACE[..compared] {
            return Ok(bytes.freeze());
        }
    }
}

fn http1(idle: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // The limit of headers stays the library's, 100: another one would cost an allocation.
    builder.timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(BUFFER_BYTES_MAX);
    // A chunk of a stream is small: to copy it costs less than to have the kernel gather it.
    builder.writev(false);
    builder
}

fn http2(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(BUFFER_BYTES_MAX as u32)
        .max_send_buf_size(BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Polls a connection to its end, which `shutdown` brings about after the requests under way, and
/// `idle` at once.
async fn drive<C: GracefulConnection>(
    connection: C,
    idle: impl Future<Output = ()>,
    shutdown: &CancellationToken,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    let is_idle = tokio::select! {
        biased;
        ended = &mut connection => return ended,
        () = shutdown.cancelled() => false,
        () = idle => true,
    };
    connection.as_mut().graceful_shutdown();
    match is_idle {
        true => timeout(GOODBYE_MAX, connection).await.unwrap_or(Ok(())),
        false => connection.await,
    }
}

#[cfg(test)]
mod tests;
