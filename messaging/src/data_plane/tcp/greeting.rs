//! The first bytes that come on a connection, or why none do.
//!
//! That a connection was made says little: the system makes it for a stopped process too, and a
//! server refuses a client's certificate only after its handshake. Every server speaks once it has
//! heard a client's preface, so the first bytes say that somebody is there who wants to talk.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_rustls::rustls;

/// The first byte of what a TLS server answers to a client that speaks plainly.
const TLS_ALERT: u8 = 0x15;

/// A connection that tells what its first read was.
pub(super) struct Greeting<S> {
    stream: S,
    told: Option<oneshot::Sender<io::Result<()>>>,
}

impl<S> Greeting<S> {
    /// With the outcome of the first read.
    pub(super) fn expected(stream: S) -> (Self, impl Future<Output = io::Result<()>>) {
        let (told, first) = oneshot::channel();
        let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let outcome = async move { first.await.unwrap_or_else(|_| Err(closed())) };
        (Self { stream, told: Some(told) }, outcome)
    }

    /// Nobody wants to know.
    pub(super) fn unobserved(stream: S) -> Self {
        Self { stream, told: None }
    }
}

/// What the first bytes say.
fn judged(bytes: &[u8]) -> io::Result<()> {
    match bytes.first() {
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
        Some(&TLS_ALERT) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it speaks TLS and this component does not",
        )),
        Some(_) => Ok(()),
    }
}

/// An error of TLS in words that say what to look at; others as they are.
pub(super) fn explained(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let sentence = match tls {
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".to_string(),
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("it refuses this component's TLS certificate or settings ({alert:?})")
        }
        Some(error) => format!("its TLS certificate is not accepted ({error})"),
        None => return error,
    };
    io::Error::new(error.kind(), sentence)
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let Some(told) = self.told.take() else { return Poll::Ready(read) };
        let outcome = match read {
            Ok(()) => judged(&buffer.filled()[before..]),
            Err(error) => Err(explained(error)),
        };
        let failed = outcome.as_ref().err().map(io::Error::kind);
        let _gone = told.send(outcome);
        Poll::Ready(failed.map_or(Ok(()), |kind| Err(kind.into())))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
