//! One HTTP/1.1 connection, driven by the task that waits for its answer: no other task is woken
//! for a piece of a stream, which is most of what a streamed event would otherwise cost.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A server that does not accept for this long counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that carries one request after another.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once the connection is closed.
    driver: Option<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>,
}

/// Why there is no response.
pub enum SendError {
    /// The connection was closed before anything was sent: here the request is back.
    NotSent(Box<Request<Full<Bytes>>>),
    /// Whether the server has seen the request is unknown.
    Broken(hyper::Error),
}

impl Connection {
    /// Connects. Errors: why not.
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(format!("cannot connect to {address}: {error}")),
            Err(_) => return Err(format!("cannot connect to {address}: no answer for 10 s")),
        };
        // Without this, a request may wait for the server's acknowledgement.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| explain(&error))?;
        Ok(Self { sender, driver: Some(driver) })
    }

    /// Waits until another request can be sent; false if the server has closed the connection.
    pub async fn ready(&mut self) -> bool {
        poll_fn(|cx| {
            self.drive(cx);
            self.sender.poll_ready(cx)
        })
        .await
        .is_ok()
    }

    /// Sends a request and waits for the response's head.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut response = pin!(self.sender.try_send_request(request));
        let sent = poll_fn(|cx| {
            self.drive(cx);
            response.as_mut().poll(cx)
        });
        sent.await.map_err(|mut error| match error.take_message() {
            Some(request) => SendError::NotSent(Box::new(request)),
            None => SendError::Broken(error.into_error()),
        })
    }

    /// The next piece of a response's body; `None` at its end.
    pub async fn data(&mut self, body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => {
                    self.drive(cx);
                    Pin::new(&mut *body).poll_frame(cx)
                }
                ready => ready,
            });
            match frame.await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_trailers) => {}
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Moves bytes. Errors reach whoever waits for the response or its body.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            self.driver = None;
        }
    }
}

/// An error with its causes, in one line.
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        sentence = format!("{sentence}: {cause}");
        source = cause.source();
    }
    sentence
}
