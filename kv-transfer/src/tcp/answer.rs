//! A source's side of a connection: hello, then an answer to each read.

use std::io::{ErrorKind, IoSlice};

use tokio::time::{Instant, timeout};

use super::server::{Sender, Under};
use super::stream::{Broken, Stream, read as read_bytes, read_payload, read_within, write};
use super::wire::{
    HEADER_BYTES, Header, Kind, READ_BYTES_MAX, ReadRequest, Refusal, Run, WireError, encode_frame,
};
use super::{ASK_MAX, CREDIT_WAIT_MAX, IDLE_MAX, READ_MAX};
use crate::cuda::{self, CudaError};
use crate::local::LocalSource;
use crate::{HostMemory, KvMemory, LocalPools, ReadPin, TransferError};

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
            Kind::Read => answer(&mut stream, sender, read, &request).await?,
            borrow => lend(&mut stream, sender, read, borrow, &request).await?,
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
        let is_asked = matches!(header.kind, Kind::Read | Kind::BorrowByCuda | Kind::BorrowByUcx);
        if !is_asked || header.read != read {
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
    let sent = timeout(READ_MAX, sending).await.map_err(|_| Broken::Silent)??;
    if let Err(error) = sent {
        return Ok(Err(unreadable(&error)));
    }
    sender.status.count(bytes);
    Ok(pin.check(Instant::now().into_std()).map_err(Refusal::from))
}

/// Lends what is asked for, pinned until the reader says that it has read it. The inner error is for
/// the reader.
async fn lend(
    stream: &mut impl Stream,
    sender: &Sender,
    read: u32,
    kind: Kind,
    request: &ReadRequest,
) -> Result<Result<(), Refusal>, Broken> {
    let Some(source) = sender.pools.source(&request.worker) else {
        return Ok(Err(Refusal::SourceGone));
    };
    if !request.runs.iter().all(|run| is_in_pool(&source, run)) {
        return Ok(Err(Refusal::OverCredit));
    }
    // A network card does not wait for the GPU, as copies do.
    if kind == Kind::BorrowByUcx
        && let Err(error) = source.memory.settled().await
    {
        return Ok(Err(not_lent(&error)));
    }
    let pin = match pin(sender, &source, request) {
        Ok(pin) => pin,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let lent = match how_to_reach(sender, &source, kind) {
        Ok(lent) => lent,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let _under_way = Under::way(&sender.status.reads);
    say(stream, Kind::Lent, read, &lent).await?;
    let mut header = [0; HEADER_BYTES];
    let returned = timeout(READ_MAX, read_within(stream, &mut header, READ_MAX)).await;
    returned.map_err(|_| Broken::Silent)??;
    let header = Header::decode(&header)?;
    if header.kind != Kind::Returned || header.read != read {
        return Err(WireError::Malformed("not the end of the loan").into());
    }
    read_payload(stream, &header, 0).await?;
    // Who knows what was read from where another agent, or none, was by then.
    if kind == Kind::BorrowByUcx && how_to_reach(sender, &source, kind).ok() != Some(lent) {
        return Ok(Err(Refusal::NotLent));
    }
    Ok(pin.check(Instant::now().into_std()).map_err(Refusal::from))
}

/// What a reader has to know to read a pool in the way that it asks for.
fn how_to_reach(sender: &Sender, source: &LocalSource, kind: Kind) -> Result<Vec<u8>, Refusal> {
    // Faults happen to blocks that come through here.
    if sender.pools.are_faulty() {
        return Err(Refusal::NotLent);
    }
    match (kind, &source.memory) {
        (Kind::BorrowByCuda, KvMemory::Cuda(memory)) => {
            memory.lend().map(|lent| lent.encode()).map_err(|error| not_lent(&error))
        }
        (Kind::BorrowByUcx, memory) => {
            sender.agent().and_then(|agent| agent.keys(memory)).ok_or(Refusal::NotLent)
        }
        _ => Err(Refusal::NotLent),
    }
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

/// Blocks of this process's GPU cannot be lent, or, where it is lost, not even be read.
fn not_lent(error: &CudaError) -> Refusal {
    if error.is_device_lost() {
        return unreadable(error);
    }
    tracing::debug!(%error, "lends no KV blocks");
    Refusal::NotLent
}

/// Blocks cannot be read from this process's GPU: it will not come back in this life.
fn unreadable(error: &CudaError) -> Refusal {
    tracing::error!(%error, "cannot read KV blocks from the GPU");
    Refusal::SourceGone
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
) -> Result<Result<(), CudaError>, Broken> {
    let mut outgoing = match Outgoing::begin(&source.memory) {
        Ok(outgoing) => outgoing,
        Err(error) => return Ok(Err(error)),
    };
    let (mut position, block_bytes) = (0, source.memory.block_bytes());
    while !runs.is_empty() {
        let (batch, rest) = runs.split_at(frames_at_once(runs, block_bytes));
        // SAFETY: announced blocks are complete, and the caller's pin keeps them unchanged.
        let blocks = match unsafe { outgoing.bytes_of(batch, block_bytes) }.await {
            Ok(blocks) => blocks,
            Err(error) => return Ok(Err(error)),
        };
        let mut frames = Vec::with_capacity(batch.len());
        for (run, blocks) in batch.iter().zip(blocks) {
            let blocks = pools.faulty(blocks, block_bytes);
            frames.push((Header::of_blocks(read, position, *run, &blocks).encode(), blocks));
            position += 1;
        }
        let parts = frames.iter().flat_map(|(header, blocks)| [&header[..], &blocks[..]]);
        write(stream, &mut parts.map(IoSlice::new).collect::<Vec<_>>()).await?;
        runs = rest;
    }
    Ok(Ok(()))
}

/// How many of the next runs, at least one, are written at once.
fn frames_at_once(runs: &[Run], block_bytes: usize) -> usize {
    let mut bytes = 0;
    let fits = |run: &&Run| {
        let fits = bytes < BATCH_BYTES;
        bytes += run.blocks as usize * block_bytes;
        fits
    };
    runs.iter().take(BATCH_FRAMES).take_while(fits).count()
}

/// Blocks on their way out: from where they lie, or by way of memory that their GPU copies to.
enum Outgoing<'a> {
    Host(&'a HostMemory),
    Cuda(cuda::Staging<'a>),
}

impl<'a> Outgoing<'a> {
    fn begin(memory: &'a KvMemory) -> Result<Self, CudaError> {
        Ok(match memory {
            KvMemory::Host(memory) => Self::Host(memory),
            KvMemory::Cuda(memory) => Self::Cuda(cuda::Staging::begin(memory)?),
        })
    }

    /// The bytes of each run.
    ///
    /// # Safety
    /// Nobody writes to these blocks while the bytes live.
    async unsafe fn bytes_of(
        &mut self,
        runs: &[Run],
        block_bytes: usize,
    ) -> Result<Vec<&[u8]>, CudaError> {
        match self {
            Self::Host(memory) => {
                let memory = *memory;
                // SAFETY: the caller's promise.
                let bytes = |run: &Run| unsafe { memory.read_blocks(run.first, run.blocks) };
                Ok(runs.iter().map(bytes).collect())
            }
            Self::Cuda(staging) => {
                // SAFETY: the caller's promise.
                let mut rest = unsafe { staging.bytes_of(runs) }.await?;
                let next = |run: &Run| {
                    let (bytes, behind) = rest.split_at(run.blocks as usize * block_bytes);
                    rest = behind;
                    bytes
                };
                Ok(runs.iter().map(next).collect())
            }
        }
    }
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
