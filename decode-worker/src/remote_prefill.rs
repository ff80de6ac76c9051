//! Has a prompt computed by a prefill worker: reserve blocks, call, pass the first token on at
//! once, pull blocks as they are announced, finish the lease, and only then trust what was read.

use std::ops::Range;
use std::time::Duration;

use kv_transfer::{BlockCopy, KvMemory, TransferError, Way};
use protocol::v1::{self, RequestUpdate, prefill_event::Kind};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use worker::{HostError, Reservation};

use crate::prefill_error::PrefillError;
use crate::prefill_source::{Copied, Events, Source, in_time};
use crate::request_context::{RequestContext, news_of};

/// A copy of fewer bytes is sooner done than handed to another thread.
const INLINE_COPY_BYTES: usize = 128 * 1024;

/// What is left after a failure.
pub struct Failed {
    /// Why.
    pub error: PrefillError,
    /// The blocks that were set aside, with nothing new in them that counts.
    pub reservation: Option<Reservation>,
    /// The token that was already given out.
    pub first_token: Option<u32>,
}

/// Runs the whole handoff, up to where the engine decodes.
pub async fn run(
    context: &RequestContext,
    request: &v1::GenerateRequest,
    worker: &v1::PrefillWorker,
) -> Result<(), Failed> {
    let without_blocks = |error| Failed { error, reservation: None, first_token: None };
    let sequence = context.sequence_request(request);
    let (outputs, handle) = (context.outputs.clone(), context.sequence.clone());
    // All blocks before the call: nothing is held elsewhere while we would wait for room here.
    let reserved = context.shared.host.reserve(sequence, outputs, handle).await;
    let reservation = reserved.map_err(|e| without_blocks(PrefillError::Reserve(e)))?;

    let mut handoff = Handoff::new(context, request.request, worker, reservation);
    match handoff.call_and_pull(request).await {
        Ok(()) => {
            let first_token = handoff.first_token;
            let activated = handoff.activate().await;
            let failed = |e| Failed { first_token, ..without_blocks(PrefillError::Activate(e)) };
            activated.map_err(failed)
        }
        Err(error) => {
            if error.doubts_connection() {
                context.shared.peers.forget(&worker.data_endpoint);
            }
            let reservation = handoff.recover_reservation().await;
            Err(Failed { error, reservation, first_token: handoff.first_token })
        }
    }
}

/// A handoff under way.
struct Handoff<'a> {
    context: &'a RequestContext,
    request: u64,
    worker: &'a v1::PrefillWorker,
    /// Elsewhere while a copy is under way.
    reservation: Option<Reservation>,
    copying: Option<JoinHandle<(Reservation, Result<Copied, TransferError>)>>,
    cached_blocks: usize,
    blocks: usize,
    /// Where the announced blocks lie in the prefill worker's pool.
    announced: Vec<u32>,
    /// Blocks that were read, or are being read.
    pulled: usize,
    /// Of the copy under way, or the last one.
    copy_bytes: usize,
    first_token: Option<u32>,
    ended: bool,
    times: Times,
}

/// How long blocks travelled.
#[derive(Default)]
struct Times {
    copies: Duration,
    /// The part of that after the first token.
    exposed: Duration,
    first_token: Option<Instant>,
}

impl Times {
    /// A copy that took so long has just ended.
    fn add_copy(&mut self, took: Duration) {
        self.copies += took;
        self.exposed += self.first_token.map_or(Duration::ZERO, |at| at.elapsed().min(took));
    }
}

impl<'a> Handoff<'a> {
    fn new(
        context: &'a RequestContext,
        request: u64,
        worker: &'a v1::PrefillWorker,
        reservation: Reservation,
    ) -> Self {
        let cached_blocks = reservation.cached_blocks;
        let blocks = cached_blocks + reservation.writer.len();
        Self {
            context,
            request,
            worker,
            reservation: Some(reservation),
            copying: None,
            cached_blocks,
            blocks,
            announced: Vec::with_capacity(blocks),
            pulled: cached_blocks,
            copy_bytes: 0,
            first_token: None,
            ended: false,
            times: Times::default(),
        }
    }

    async fn call_and_pull(&mut self, request: &v1::GenerateRequest) -> Result<(), PrefillError> {
        let endpoint = &self.worker.data_endpoint;
        let client = in_time(self.context.shared.peers.client(endpoint)).await?;
        let mut client = client.map_err(PrefillError::Connect)?;
        let call = self.prefill_request(request);
        let mut events = Events::new(in_time(client.prefill(call)).await??.into_inner());
        let granted = match events.next().await? {
            Some(Kind::Granted(granted)) => granted,
            _ => return Err(PrefillError::Protocol("no lease came first")),
        };
        let source = Source::from_grant(self.worker, granted, &self.context.shared)?;
        let _renewing = source.keep_renewing(client.clone());
        self.follow(&source, &mut events).await?;
        if self.ended {
            // Nobody needs the blocks: the lease ends with the stream. A failure to finish it would
            // come after the request's end.
            return Ok(());
        }
        source.finish(client).await
    }

    /// Handles events and copies side by side until all blocks were read and the first token came,
    /// or the first token was the last.
    async fn follow(&mut self, source: &Source, events: &mut Events) -> Result<(), PrefillError> {
        loop {
            self.copy_announced(source)?;
            if self.is_complete() {
                return Ok(());
            }
            tokio::select! {
                biased;
                copied = joined(&mut self.copying), if self.copying.is_some() => {
                    self.copying = None;
                    let (reservation, copied) = copied.map_err(|_| PrefillError::Copy)?;
                    self.reservation = Some(reservation);
                    self.add_copy(copied?);
                }
                event = events.next(), if !self.is_all_said() => self.take(event?).await?,
            }
        }
    }

    fn is_complete(&self) -> bool {
        let all_read = self.copying.is_none() && self.pulled == self.blocks;
        self.ended || (self.first_token.is_some() && all_read)
    }

    fn is_all_said(&self) -> bool {
        self.first_token.is_some() && self.announced.len() == self.blocks
    }

    async fn take(&mut self, event: Option<Kind>) -> Result<(), PrefillError> {
        match event {
            Some(Kind::Ready(ready)) => {
                self.announced.extend(ready.added);
                if self.announced.len() != ready.blocks as usize
                    || self.announced.len() > self.blocks
                {
                    return Err(PrefillError::Protocol("announced blocks do not add up"));
                }
                Ok(())
            }
            Some(Kind::FirstToken(first)) => self.pass_on(first).await,
            Some(Kind::Granted(_)) => Err(PrefillError::Protocol("a second lease came")),
            Some(Kind::Progress(_)) => Ok(()),
            None => Err(PrefillError::Protocol("its stream ended early")),
        }
    }

    /// The first token goes to the client at once, before the transfer is complete.
    async fn pass_on(&mut self, first: v1::FirstToken) -> Result<(), PrefillError> {
        let finish = first.finish();
        let token = first.token.ok_or(PrefillError::Protocol("a first token without a token"))?;
        if token.id as usize >= self.context.shared.host.vocabulary_size() {
            return Err(PrefillError::Protocol("its token is not in the vocabulary"));
        }
        self.first_token = Some(token.id);
        self.times.first_token = Some(Instant::now());
        self.ended = finish != v1::FinishReason::Unspecified;
        let update = RequestUpdate {
            tokens: vec![token],
            cached_tokens: Some(first.cached_tokens),
            finish: finish.into(),
            ..news_of(self.request)
        };
        self.context.report(update).await;
        Ok(())
    }

    /// Copies what is announced and not read yet: a little from this process at once, more on a thread
    /// where it may take as long as it takes, and from other processes as it comes; one copy at a
    /// time. That copy owns the reservation: should this task be cancelled, the blocks stay reserved
    /// until the copy is done.
    fn copy_announced(&mut self, source: &Source) -> Result<(), PrefillError> {
        let wanted = self.pulled..self.announced.len();
        if self.copying.is_some() || self.ended || wanted.is_empty() {
            return Ok(());
        }
        let Some(mut reservation) = self.reservation.take() else { return Ok(()) };
        let copies = self.copies(wanted);
        self.pulled = self.announced.len();
        let ways = self.context.shared.ways.clone();
        self.copy_bytes = copies.len() * reservation.writer.layout().block_bytes();
        // A GPU is waited for, however little it copies.
        let is_little = matches!(reservation.writer.memory(), KvMemory::Host(_))
            && self.copy_bytes <= INLINE_COPY_BYTES;
        let source = source.clone();
        self.copying = match source.way {
            Way::Local if is_little => {
                let copied = source.pull_here(&ways, &copies, &mut reservation);
                self.reservation = Some(reservation);
                self.add_copy(copied?);
                None
            }
            Way::Local => Some(tokio::task::spawn_blocking(move || {
                let copied = source.pull_here(&ways, &copies, &mut reservation);
                (reservation, copied)
            })),
            Way::Cuda(_) | Way::Ucx(_) | Way::Tcp(_) => Some(tokio::spawn(async move {
                let copied = source.pull(&ways, &copies, &mut reservation).await;
                (reservation, copied)
            })),
        };
        Ok(())
    }

    fn add_copy(&mut self, copied: Copied) {
        self.times.add_copy(copied.waited);
        let Copied { way, link, took, .. } = copied;
        self.context.shared.transfers.record(way, link, self.copy_bytes, took);
    }

    fn copies(&self, blocks: Range<usize>) -> Vec<BlockCopy> {
        let copy = |index: usize| BlockCopy {
            source: self.announced[index],
            destination: index - self.cached_blocks,
        };
        blocks.map(copy).collect()
    }

    async fn activate(mut self) -> Result<(), HostError> {
        let (Some(reservation), Some(token), false) =
            (self.reservation.take(), self.first_token, self.ended)
        else {
            return Ok(());
        };
        let ended = self.context.shared.host.activate(reservation, token).await?;
        let us = |time: Duration| time.as_micros() as u64;
        tracing::debug!(
            request = self.request,
            blocks = self.blocks - self.cached_blocks,
            copies_us = us(self.times.copies),
            exposed_us = us(self.times.exposed),
            until_decode_us = self.times.first_token.map_or(0, |at| us(at.elapsed())),
            "blocks moved"
        );
        self.context.report_end(ended, self.request).await;
        Ok(())
    }

    async fn recover_reservation(&mut self) -> Option<Reservation> {
        if let Some(copying) = self.copying.take() {
            self.reservation = copying.await.ok().map(|(reservation, _)| reservation);
        }
        self.reservation.take()
    }

    fn prefill_request(&self, request: &v1::GenerateRequest) -> v1::PrefillRequest {
        v1::PrefillRequest {
            request_id: request.request_id.clone(),
            incarnation: self.worker.incarnation,
            numerics_id: self.context.shared.numerics_id.clone(),
            prompt_tokens: request.prompt_tokens.clone(),
            sampling: request.sampling.clone(),
            stopping: request.stopping.clone(),
            cache_salt: request.cache_salt.clone(),
            generated_tokens: request.generated_tokens.clone(),
            grammar: request.grammar.clone(),
            priority: request.priority,
        }
    }
}

/// The end of a copy; waits for ever where there is none.
async fn joined<T>(copying: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match copying {
        Some(copying) => copying.await,
        None => std::future::pending().await,
    }
}
