//! A source's side of a connection: hello, then an answer to each read.

use std::borrow::Cow;
use std::io::{ErrorKind, IoSlice};

use tokio::time::{Instant, timeout};

use super::server::{Sender, Under};
use super::stream::{Broken, Stream, read as read_bytes, read_payload, read_within, write};
use super::wire::{
    HEADER_BYTES, Header, Kind, READ_BYTES_MAX, ReadRequest, Refusal, Run, WireError, encode_frame,
};
use super::{ASK_MAX, CREDIT_WAIT_MAX, IDLE_MAX, READ_MAX};
use crate::local::LocalSource;
use crate::{LocalPools, ReadPin, TransferError};

/// Bytes that are checksummed and then written at once: what stays in a core's cache in between.
const BATCH_BYTES: usize = 512 * 1024;

/// Frames that are written at once.
const BATCH_FRAMES: usize = 32;

/// Answers until the reader goes. Errors: why the connection is of no use any more.
pub async fn serve(mut stream: impl Stream, sender: &Sender) -> Result<(), Broken> {
    let credit = u64::from(sender.limits.credit_bytes).to_le_bytes();
    say(&mut stream, Kind::Hello, 0, &credit).await?;
    for read in 1.. {
        let Some((kind, request)) = next_request(&mut stream, read).await? else { return Ok(()) };
        let answered = match kind {
            Kind::BorrowByUcx => lend(&mut stream, sender, read, &request).await?,
            _ => answer(&mut stream, sender, read, &request).await?,
        };
        match answered {
            Ok(()) => say(&mut stream, Kind::Done, read, &[]).await?,
            Err(refusal) => say(&mut stream, Kind::Refused, read, &refusal.encode()).await?,
        }
    }
    Ok(())
}

/// Says that there is no room for a further connection.
pub async fn turn_away(mut stream: impl Stream) -> Result<(), Broken> {
    say(&mut stream, Kind::Refused, 0, &Refusal::Busy.encode()).await
}

async fn say(
    stream: &mut impl Stream,
    kind: Kind,
    read: u32,
    payload: &[u8],
) -> Result<(), Broken> {
    let frame = encode_frame(kind, read, payload);
    write(stream, &mut [IoSlice::new(&frame)]).await
}

/// Waits for what is asked next; `None` when nothing more is.
async fn next_request(
    stream: &mut impl Stream,
    read: u32,
) -> Result<Option<(Kind, ReadRequest)>, Broken> {
    let mut header = [0; HEADER_BYTES];
    match read_within(stream, &mut header[..1], IDLE_MAX).await {
        Err(Broken::Silent) => return Ok(None),
        Err(Broken::Io(error)) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let asked = async {
        read_bytes(stream, &mut header[1..]).await?;
        let header = Header::decode(&header)?;
        if !matches!(header.kind, Kind::Read | Kind::BorrowByUcx) || header.read != read {
            return Err(WireError::Malformed("not the read that was due").into());
        }
        let payload = read_payload(stream, &header, READ_BYTES_MAX).await?;
        Ok(Some((header.kind, ReadRequest::decode(&payload)?)))
    };
    timeout(ASK_MAX, asked).await.map_err(|_| Broken::Silent)?
}

/// Sends what is asked for, while the lease pins it. The inner error is for the reader.
async fn answer(
    stream: &mut impl Stream,
    sender: &Sender,
    read: u32,
    request: &ReadRequest,
) -> Result<Result<(), Refusal>, Broken> {
    let Some(source) = sender.pools.source(&request.worker) else {
        return Ok(Err(Refusal::SourceGone));
    };
    let bytes = match bytes_asked_for(&source, &request.runs) {
        Some(bytes) if bytes <= sender.limits.credit_bytes => bytes,
        _ => return Ok(Err(Refusal::OverCredit)),
    };
    let pin = match pin(sender, &source, request) {
        Ok(pin) => pin,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let _under_way = Under::way(&sender.status.reads);
    let credit = timeout(CREDIT_WAIT_MAX, sender.credit.acquire_many(bytes)).await;
    let Ok(Ok(_credit)) = credit else { return Ok(Err(Refusal::Busy)) };
    let sending = send_runs(stream, &sender.pools, &source, read, &request.runs);
    timeout(READ_MAX, sending).await.map_err(|_| Broken::Silent)??;
    sender.status.count(bytes);
    Ok(pin.check(Instant::now().into_std()).map_err(Refusal::from))
}

/// Lends what is asked for, pinned until the reader says that it has read it. The inner error is for
/// the reader.
async fn lend(
    stream: &mut impl Stream,
    sender: &Sender,
    read: u32,
    request: &ReadRequest,
) -> Result<Result<(), Refusal>, Broken> {
    let Some(source) = sender.pools.source(&request.worker) else {
        return Ok(Err(Refusal::SourceGone));
    };
    if !request.runs.iter().all(|run| is_in_pool(&source, run)) {
        return Ok(Err(Refusal::OverCredit));
    }
    let pin = match pin(sender, &source, request) {
        Ok(pin) => pin,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let keys = || sender.agent().and_then(|agent| agent.keys(&source.memory));
    let Some(lent) = keys() else { return Ok(Err(Refusal::NotLent)) };
    let _under_way = Under::way(&sender.status.reads);
    say(stream, Kind::Lent, read, &lent).await?;
    let mut header = [0; HEADER_BYTES];
    read_within(stream, &mut header, READ_MAX).await?;
    let header = Header::decode(&header)?;
    if header.kind != Kind::Returned || header.read != read {
        return Err(WireError::Malformed("not the end of the loan").into());
    }
    read_payload(stream, &header, 0).await?;
    if keys() != Some(lent) {
        // Who knows what was read from where another agent, or none, was by then.
        return Ok(Err(Refusal::NotLent));
    }
    Ok(pin.check(Instant::now().into_std()).map_err(Refusal::from))
}

/// Pins what is asked for, if the reader has the right to it and understands it.
fn pin<'a>(
    sender: &Sender,
    source: &'a LocalSource,
    request: &ReadRequest,
) -> Result<ReadPin<'a>, Refusal> {
    sender.pools.before_read(&request.worker).map_err(Refusal::of)?;
    let blocks = request.runs.iter().flat_map(|run| run.numbers());
    let pin = source.leases.pin(Instant::now().into_std(), request.lease, blocks)?;
    if request.layout != source.layout {
        return Err(Refusal::LayoutMismatch);
    }
    Ok(pin)
}

/// Bytes of all runs, if every block is in the pool and no run is empty.
fn bytes_asked_for(source: &LocalSource, runs: &[Run]) -> Option<u32> {
    let blocks: u64 = runs.iter().map(|run| u64::from(run.blocks)).sum();
    let bytes = blocks.checked_mul(source.memory.block_bytes() as u64)?;
    u32::try_from(bytes).ok().filter(|_| runs.iter().all(|run| is_in_pool(source, run)))
}

fn is_in_pool(source: &LocalSource, run: &Run) -> bool {
    let behind = u64::from(run.first) + u64::from(run.blocks);
    run.blocks > 0 && behind <= source.memory.blocks() as u64
}

/// Sends a frame per run. The caller holds a pin on them.
async fn send_runs(
    stream: &mut impl Stream,
    pools: &LocalPools,
    source: &LocalSource,
    read: u32,
    mut runs: &[Run],
) -> Result<(), Broken> {
    let (mut position, block_bytes) = (0, source.memory.block_bytes());
    while !runs.is_empty() {
        let mut frames: Vec<([u8; HEADER_BYTES], Cow<[u8]>)> = Vec::with_capacity(BATCH_FRAMES);
        let mut bytes = 0;
        while let Some((run, rest)) = runs.split_first()
            && frames.len() < BATCH_FRAMES
            && bytes < BATCH_BYTES
        {
            // SAFETY: announced blocks are complete, and the caller's pin keeps them unchanged.
            let blocks = unsafe { source.memory.read_blocks(run.first, run.blocks) };
            let blocks = pools.faulty(blocks, block_bytes);
            frames.push((Header::of_blocks(read, position, *run, &blocks).encode(), blocks));
            bytes += run.blocks as usize * block_bytes;
            (runs, position) = (rest, position + 1);
        }
        let parts = frames.iter().flat_map(|(header, blocks)| [&header[..], &blocks[..]]);
        write(stream, &mut parts.map(IoSlice::new).collect::<Vec<_>>()).await?;
    }
    Ok(())
}

impl Refusal {
    /// What a reader is told of an error at the source.
    fn of(error: TransferError) -> Self {
        match error {
            TransferError::Lease(error) => error.into(),
            TransferError::SourceGone(_) => Self::SourceGone,
            TransferError::LayoutMismatch => Self::LayoutMismatch,
            _ => Self::Busy,
        }
    }
}
