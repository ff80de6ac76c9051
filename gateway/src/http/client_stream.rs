//! A client's end of a connection, as HTTP sees it: bytes, with a deadline for those that the client
//! does not take, and an end that does not lose the last answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::bare_refusal;

/// How long a client that is still sending is listened to after the end. A socket that is closed
/// with bytes unread takes what was written with it, before the client has seen it.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// What is read at once of what nobody wants.
const UNWANTED_BYTES: usize = 4096;

type Deadline = Option<Pin<Box<Sleep>>>;

/// A stream of bytes from and to a client.
pub struct ClientStream<S> {
    inner: S,
    /// What was read already.
    beginning: Bytes,
    stall_max: Duration,
    /// While the client takes nothing.
    stalled: Deadline,
    /// What is being written in place of a refusal that says nothing.
    instead: Option<Bytes>,
    /// Since the end was written.
    lingering: Deadline,
    /// The server ends, and waits for nobody's last bytes.
    shutdown: CancellationToken,
}

impl<S> ClientStream<S> {
    /// A stream that began with these bytes.
    pub fn new(
        inner: S,
        beginning: Bytes,
        stall_max: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let (stalled, instead, lingering) = (None, None, None);
        Self { inner, beginning, stall_max, stalled, instead, lingering, shutdown }
    }

    /// Errors: the client has taken nothing for too long.
    fn taken<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall_max = self.stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall_max)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncWrite + Unpin> ClientStream<S> {
    /// Writes the better refusal in place of a bare one; `None` where `bytes` are no such thing.
    fn poll_write_instead(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.instead.is_none() {
            self.instead = Some(bare_refusal::better(bytes)?);
        }
        while let Some(left) = self.instead.as_mut().filter(|left| left.has_remaining()) {
            let written = Pin::new(&mut self.inner).poll_write(cx, left);
            if let Poll::Ready(Ok(written)) = written {
                left.advance(written);
            }
            match self.taken(cx, written) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Ok(0))),
                Poll::Ready(Ok(_)) => {}
                other => return Some(other),
            }
        }
        self.instead = None;
        Some(Poll::Ready(Ok(bytes.len())))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.beginning.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buffer);
        }
        let bytes = self.beginning.len().min(buffer.remaining());
        buffer.put_slice(&self.beginning.split_to(bytes));
        if self.beginning.is_empty() {
            self.beginning = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(written) = self.poll_write_instead(cx, bytes) {
            return written;
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.taken(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        if let Some(written) = self.poll_write_instead(cx, first) {
            return written;
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.taken(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.taken(cx, flushed)
    }

    /// Ends what is written, then reads until the client ends too.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let ended = Pin::new(&mut self.inner).poll_shutdown(cx);
            ready!(self.taken(cx, ended))?;
            if self.shutdown.is_cancelled() {
                return Poll::Ready(Ok(()));
            }
        }
        let this = &mut *self;
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER_MAX)));
        if lingering.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut unwanted = [0; UNWANTED_BYTES];
        loop {
            let mut unwanted = ReadBuf::new(&mut unwanted);
            let read = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut unwanted));
            if read.is_err() || unwanted.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    /// A connection with room for 8 bytes each way.
    fn stream() -> (ClientStream<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (inner, client) = duplex(8);
        let beginning = Bytes::from_static(b"beginning");
        (ClientStream::new(inner, beginning, STALL, CancellationToken::new()), client)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (mut stream, _client) = stream();
        let began = tokio::time::Instant::now();
        let error = stream.write_all(b"more than eight").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), STALL.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_little_is_waited_for() {
        let (mut stream, mut client) = stream();
        let reading = tokio::spawn(async move {
            let mut byte = [0];
            for _ in 0..100 {
                sleep(STALL - Duration::from_secs(1)).await;
                client.read_exact(&mut byte).await.unwrap();
            }
        });
        stream.write_all(&[7; 100]).await.unwrap();
        reading.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_comes_first() {
        let (mut stream, mut client) = stream();
        client.write_all(b" and end").await.unwrap();
        drop(client);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "beginning and end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_still_sends_can_read_the_answer() {
        let (mut stream, mut client) = stream();
        let ending = tokio::spawn(async move {
            stream.write_all(b"answer").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        client.write_all(&[7; 1000]).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        drop(client);
        ending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_not_waited_for_long() {
        for (server_ends, most) in [(false, LINGER_MAX), (true, Duration::ZERO)] {
            let (mut stream, _client) = stream();
            if server_ends {
                stream.shutdown.cancel();
            }
            let began = tokio::time::Instant::now();
            stream.shutdown().await.unwrap();
            assert!(began.elapsed() <= most + Duration::from_millis(1), "{server_ends}");
        }
    }
}
