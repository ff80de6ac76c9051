//! A reader's side of a connection.

use std::collections::VecDeque;
use std::io::IoSlice;

use protocol::WorkerLife;

use super::stream::{Broken, Stream, read, read_header, read_payload, write};
use super::wire::{
    ANSWER_BYTES_MAX, Header, Kind, LENT_BYTES_MAX, RUNS_MAX, ReadRequest, Refusal, Run, WireError,
    encode_frame,
};
use crate::cuda::CudaError;
use crate::memory::Receiving;
use crate::plan::{CopyOp, split};
use crate::{BlockCopy, BlockWriter, KvLayout, Lease, PlanError};

/// Reads under way on one connection: one that is being answered, and one that the source finds
/// waiting when it is done.
const READS_MAX: usize = 2;

/// Blocks that are sent under one checksum: as many as stay in a core's cache until it is checked.
const FRAME_BYTES: usize = 1 << 20;

/// How a pull ended on this connection, other than well.
#[derive(Debug)]
pub enum Failure {
    /// The source refused, and said why.
    Refused(Refusal),
    /// The connection is of no use any more.
    Broken(Broken),
    /// One block has more bytes than the source has granted.
    OverCredit,
    /// The copies make no sense; nothing was asked for.
    Plan(PlanError),
    /// The reader's GPU did not take them.
    Cuda(CudaError),
}

impl<E: Into<Broken>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// A connection whose source has said hello.
pub struct Connection<S> {
    stream: S,
    /// Bytes that may be asked for at once.
    credit_bytes: usize,
    /// Reads that were asked for.
    reads: u32,
}

/// Whose blocks are pulled, by what right.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    /// The source.
    pub worker: &'a WorkerLife,
    /// What allows it.
    pub lease: Lease,
}

impl<S: Stream> Connection<S> {
    /// Waits for the source's hello.
    pub async fn greet(mut stream: S) -> Result<Self, Failure> {
        let header = read_header(&mut stream).await?;
        let payload = read_payload(&mut stream, &header, ANSWER_BYTES_MAX).await?;
        match header.kind {
            Kind::Hello => {
                let malformed = WireError::Malformed("a hello without a credit");
                let credit = payload.try_into().map_err(|_| malformed)?;
                let credit_bytes =
                    usize::try_from(u64::from_le_bytes(credit)).unwrap_or(usize::MAX);
                Ok(Self { stream, credit_bytes, reads: 0 })
            }
            Kind::Refused => Err(Failure::Refused(Refusal::decode(&payload)?)),
            _ => Err(WireError::Malformed("no hello came first").into()),
        }
    }

    /// The stream, to see whether it is still open.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Copies blocks into the writer's, with at most `bytes_max` under way. After an error the
    /// connection must not be used again.
    pub async fn pull(
        &mut self,
        right: Right<'_>,
        copies: &[BlockCopy],
        writer: &mut BlockWriter,
        bytes_max: usize,
    ) -> Result<(), Failure> {
        let ops = writer.plan_from_afar(copies).map_err(Failure::Plan)?;
        self.receive_all(right, &ops, writer, bytes_max).await
    }

    /// Receives what was planned for this writer.
    pub(super) async fn receive_all(
        &mut self,
        right: Right<'_>,
        ops: &[CopyOp],
        writer: &mut BlockWriter,
        bytes_max: usize,
    ) -> Result<(), Failure> {
        let (layout, block_bytes) = (writer.layout().clone(), writer.layout().block_bytes());
        let blocks_max = self.credit_bytes.min(bytes_max) / block_bytes;
        if blocks_max == 0 {
            return Err(Failure::OverCredit);
        }
        let per_read = (blocks_max / READS_MAX).max(1);
        let reads_max = if blocks_max >= READS_MAX { READS_MAX } else { 1 };
        let per_frame = (FRAME_BYTES / block_bytes).clamp(1, per_read);
        let ops = split(ops, per_frame as u32);
        let mut waiting = batches(&ops, per_read);
        let mut receiving = writer.receive().map_err(Failure::Cuda)?;
        let mut under_way = VecDeque::with_capacity(reads_max);
        loop {
            while under_way.len() < reads_max
                && let Some(ops) = waiting.next()
            {
                under_way.push_back((self.ask(Kind::Read, right, &layout, ops).await?, ops));
            }
            let Some((read, ops)) = under_way.pop_front() else { break };
            self.receive(read, ops, &mut receiving).await?;
        }
        receiving.settled().await.map_err(Failure::Cuda)
    }

    /// Asks to read blocks for itself, and is told how. The blocks are pinned until `give_back`, or
    /// until the connection is dropped.
    pub(super) async fn borrow(
        &mut self,
        kind: Kind,
        right: Right<'_>,
        layout: &KvLayout,
        ops: &[CopyOp],
    ) -> Result<Vec<u8>, Failure> {
        let number = self.ask(kind, right, layout, ops).await?;
        let header = self.next_frame(number, Kind::Lent).await?;
        Ok(read_payload(&mut self.stream, &header, LENT_BYTES_MAX).await?)
    }

    /// Says that the blocks were read. Errors: what was read does not count.
    pub(super) async fn give_back(&mut self) -> Result<(), Failure> {
        let frame = encode_frame(Kind::Returned, self.reads, &[]);
        write(&mut self.stream, &mut [IoSlice::new(&frame)]).await?;
        self.done(self.reads).await
    }

    async fn ask(
        &mut self,
        kind: Kind,
        right: Right<'_>,
        layout: &KvLayout,
        ops: &[CopyOp],
    ) -> Result<u32, Failure> {
        self.reads += 1;
        let runs = ops.iter().map(|op| Run { first: op.source, blocks: op.blocks }).collect();
        let (worker, lease) = (right.worker.clone(), right.lease);
        let request = ReadRequest { worker, lease, layout: layout.clone(), runs };
        let frame = encode_frame(kind, self.reads, &request.encode()?);
        write(&mut self.stream, &mut [IoSlice::new(&frame)]).await?;
        Ok(self.reads)
    }

    /// Takes one read's answer.
    async fn receive(
        &mut self,
        number: u32,
        ops: &[CopyOp],
        receiving: &mut Receiving<'_>,
    ) -> Result<(), Failure> {
        for (position, op) in ops.iter().enumerate() {
            let header = self.next_frame(number, Kind::Blocks).await?;
            let destination = receiving.room_for(op).await.map_err(Failure::Cuda)?;
            let due = (position, Run { first: op.source, blocks: op.blocks }, destination.len());
            if (header.position as usize, header.run, header.length as usize) != due {
                return Err(WireError::Malformed("not the blocks that were due").into());
            }
            read(&mut self.stream, destination).await?;
            header.check(destination)?;
            receiving.landed(op).map_err(Failure::Cuda)?;
        }
        self.done(number).await
    }

    /// The source says that the lease has lasted.
    async fn done(&mut self, number: u32) -> Result<(), Failure> {
        let done = self.next_frame(number, Kind::Done).await?;
        read_payload(&mut self.stream, &done, 0).await?;
        Ok(())
    }

    /// The header of the next frame of a read, which is of this kind unless the source refuses.
    async fn next_frame(&mut self, number: u32, kind: Kind) -> Result<Header, Failure> {
        let header = read_header(&mut self.stream).await?;
        if header.read != number {
            return Err(WireError::Malformed("an answer to something else").into());
        }
        if header.kind == Kind::Refused {
            let payload = read_payload(&mut self.stream, &header, ANSWER_BYTES_MAX).await?;
            return Err(Failure::Refused(Refusal::decode(&payload)?));
        }
        if header.kind != kind {
            return Err(WireError::Malformed("not the frame that was due").into());
        }
        Ok(header)
    }
}

/// Gathers operations into requests of at most so many blocks.
pub(crate) fn batches(mut ops: &[CopyOp], blocks_max: usize) -> impl Iterator<Item = &[CopyOp]> {
    std::iter::from_fn(move || {
        let mut blocks = 0;
        let fits = |op: &&CopyOp| {
            blocks += op.blocks as usize;
            blocks <= blocks_max
        };
        let count = ops.iter().take(RUNS_MAX).take_while(fits).count();
        let (batch, rest) = ops.split_at(count);
        ops = rest;
        (!batch.is_empty()).then_some(batch)
    })
}
