//! Reading and writing that fails when nothing moves.

use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::PROGRESS_MAX;
use super::wire::{HEADER_BYTES, Header, WireError};

/// What frames travel on: a socket, or one within TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Bytes were due and none moved.
    #[error("no byte moved for too long")]
    Silent,
    /// It was closed, or the system says why.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is not a frame of ours, or not the one that was due.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Fills the buffer; the first byte may take `first_max` to come.
pub async fn read_within(
    stream: &mut impl Stream,
    buffer: &mut [u8],
    first_max: Duration,
) -> Result<(), Broken> {
    let (mut filled, mut wait_max) = (0, first_max);
    while filled < buffer.len() {
        let read = timeout(wait_max, stream.read(&mut buffer[filled..])).await;
        match read.map_err(|_| Broken::Silent)?? {
            0 => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            bytes => filled += bytes,
        }
        wait_max = PROGRESS_MAX;
    }
    Ok(())
}

/// Fills the buffer.
pub async fn read(stream: &mut impl Stream, buffer: &mut [u8]) -> Result<(), Broken> {
    read_within(stream, buffer, PROGRESS_MAX).await
}

/// Reads a header.
pub async fn read_header(stream: &mut impl Stream) -> Result<Header, Broken> {
    let mut bytes = [0; HEADER_BYTES];
    read(stream, &mut bytes).await?;
    Ok(Header::decode(&bytes)?)
}

/// Reads the payload that belongs to a header into memory of its own, if it has at most
/// `bytes_max`.
pub async fn read_payload(
    stream: &mut impl Stream,
    header: &Header,
    bytes_max: usize,
) -> Result<Vec<u8>, Broken> {
    if header.length as usize > bytes_max {
        return Err(WireError::Malformed("a frame that is too long").into());
    }
    let mut payload = vec![0; header.length as usize];
    read(stream, &mut payload).await?;
    header.check(&payload)?;
    Ok(payload)
}

/// Writes the parts one after the other, as many at once as the system takes.
pub async fn write(stream: &mut impl Stream, mut parts: &mut [IoSlice<'_>]) -> Result<(), Broken> {
    // Empty parts at the start would make a write of nothing look like a closed connection.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let written = timeout(PROGRESS_MAX, stream.write_vectored(parts)).await;
        match written.map_err(|_| Broken::Silent)?? {
            0 => return Err(io::Error::from(ErrorKind::WriteZero).into()),
            bytes => IoSlice::advance_slices(&mut parts, bytes),
        }
    }
    timeout(PROGRESS_MAX, stream.flush()).await.map_err(|_| Broken::Silent)??;
    Ok(())
}
