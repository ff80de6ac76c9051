//! Connections over TCP, with or without TLS.

mod greeting;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint, Server};

use super::connection::ReadWrite;
use super::tls::{Tls, TlsError, TlsFiles};
use super::{ACCEPT_QUEUE, Connection, Incoming, advertised_endpoint};
use greeting::{Greeting, explained};

/// For all of making a connection, until the other side has said something.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// For a client's part in TLS, after it was accepted.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection on which nothing came for this long is asked for a sign of life …
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// … and is broken where none comes for this long: its peer is stopped, or cut off.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes under way to one reader of a connection that has not taken them; its sender waits.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Likewise for all readers of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A prompt or a step's news mostly fits into one.
const FRAME_BYTES: u32 = 64 << 10;

/// Calls at once on one connection; further ones wait at the caller.
const CALLS_MAX: u32 = 4096;

/// Pause after an accept failed, which it does while file descriptors are short.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Where and how components talk over TCP.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// What each listener binds; port 0 is a free one.
    pub listen: SocketAddr,
    /// `HOST` or `HOST:PORT` under which others reach this component; if absent, what it listens on.
    pub advertise: Option<String>,
    /// Plain TCP if absent.
    pub tls: Option<TlsFiles>,
}

impl Default for TcpOptions {
    /// On loopback, each listener on a free port, without TLS.
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), advertise: None, tls: None }
    }
}

/// See `DataPlane`.
pub(super) struct Tcp {
    listen: SocketAddr,
    advertise: Option<String>,
    tls: Option<Tls>,
}

impl Tcp {
    pub(super) fn new(options: TcpOptions) -> Result<Self, TlsError> {
        let TcpOptions { listen, advertise, tls } = options;
        Ok(Self { listen, advertise, tls: tls.as_ref().map(Tls::load).transpose()? })
    }

    pub(super) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    pub(super) async fn listen(&self) -> io::Result<Incoming> {
        let acceptor = self.acceptor()?;
        let listener = TcpListener::bind(self.listen).await?;
        let bound = listener.local_addr()?;
        let endpoint = self.advertised(bound)?;
        let (queue, connections) = mpsc::channel(ACCEPT_QUEUE);
        let cut = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, acceptor, queue, cut.clone()));
        Ok(Incoming {
            connections,
            endpoint,
            address: Some(bound),
            _listening: Box::new(AbortOnDropHandle::new(accepting)),
            _cuts_connections: cut.drop_guard(),
        })
    }

    fn acceptor(&self) -> io::Result<Option<TlsAcceptor>> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let missing = || invalid("listening with TLS needs a certificate and its key");
        tls.acceptor.clone().map(Some).ok_or_else(missing)
    }

    fn advertised(&self, bound: SocketAddr) -> io::Result<String> {
        match &self.advertise {
            Some(advertise) => Ok(advertised_endpoint(advertise, bound.port())),
            None if bound.ip().is_unspecified() => {
                Err(invalid("listening on all addresses needs one to advertise"))
            }
            None => Ok(bound.to_string()),
        }
    }

    pub(super) async fn connect(&self, endpoint: &str) -> io::Result<Channel> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 2 s");
        timeout(CONNECT_TIMEOUT, self.connect_patiently(endpoint)).await.map_err(late)?
    }

    async fn connect_patiently(&self, endpoint: &str) -> io::Result<Channel> {
        let target = target(endpoint)?;
        let tls = self.tls.as_ref().map(|tls| tls.connector.clone());
        // Made here, so that what goes wrong is known by its own words; later ones by the channel.
        let (first, greeted) = Greeting::expected(open(endpoint, tls.as_ref()).await?);
        let first = Arc::new(Mutex::new(Some(first)));
        let endpoint = endpoint.to_string();
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let (first, endpoint, tls) = (first.lock().take(), endpoint.clone(), tls.clone());
            async move {
                match first {
                    Some(first) => Ok(TokioIo::new(first)),
                    None => {
                        let opened = timeout(CONNECT_TIMEOUT, open(&endpoint, tls.as_ref()));
                        Ok::<_, io::Error>(TokioIo::new(Greeting::unobserved(opened.await??)))
                    }
                }
            }
        });
        let channel = target.connect_with_connector(connector).await.map_err(io::Error::other)?;
        greeted.await?;
        Ok(channel)
    }
}

/// A gRPC server for such connections.
pub(super) fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(CALLS_MAX)
}

fn target(endpoint: &str) -> io::Result<Endpoint> {
    let target = Endpoint::from_shared(format!("http://{endpoint}"));
    let target = target.map_err(|_| invalid("it is not of the form host:port"))?;
    Ok(target
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES))
}

async fn open(endpoint: &str, tls: Option<&TlsConnector>) -> io::Result<Box<dyn ReadWrite>> {
    let stream = TcpStream::connect(endpoint).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let connected = tls.connect(server_name(endpoint)?, stream).await;
    Ok(Box::new(connected.map_err(explained)?))
}

fn server_name(endpoint: &str) -> io::Result<ServerName<'static>> {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
    ServerName::try_from(host).map_err(|_| invalid("its host is no name for TLS"))
}

fn invalid(sentence: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, sentence)
}

/// Accepts until it is dropped. Handshakes wait for nobody but their own client.
async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    queue: mpsc::Sender<Connection>,
    cut: CancellationToken,
) {
    let mut handshakes = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                while handshakes.try_join_next().is_some() {}
                // What is beyond the limit is closed at once: its peer tries again or elsewhere.
                if handshakes.len() < ACCEPT_QUEUE {
                    handshakes.spawn(welcome(
                        stream,
                        peer,
                        tls.clone(),
                        queue.clone(),
                        cut.clone(),
                    ));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    queue: mpsc::Sender<Connection>,
    cut: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let accepted = match tls {
        None => Connection::new(stream, cut),
        Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => Connection::new(stream, cut),
            Ok(Err(error)) => {
                let error = explained(error);
                return tracing::warn!(%peer, %error, "refused a connection");
            }
            Err(_) => {
                return tracing::warn!(%peer, "refused a connection: no TLS handshake in time");
            }
        },
    };
    // Full: the server does not keep up. Dropped, as by a full backlog.
    let _full = queue.try_send(accepted);
}
