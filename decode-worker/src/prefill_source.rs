//! The prefill worker as its reader sees it: what it says, and its blocks under a lease.

use std::time::Duration;

use kv_transfer::{
    BlockCopy, Capability, KvLayout, Lease, LeaseId, Pulled, TCP, TransferError, Way, Ways,
};
use protocol::v1::prefill_client::PrefillClient;
use protocol::v1::{self, KvLink, prefill_event::Kind};
use protocol::{SILENCE_MAX, WorkerLife};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;
use tonic::transport::Channel;
use worker::Reservation;

use crate::Context;
use crate::prefill_error::PrefillError;

/// A prompt that gets no further for this long is computed here. Long, because its worker may have
/// others to compute first, and one chunk of a large model may take that long on a CPU.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);

/// One copy from another process takes at most this long; silence is noticed far earlier.
const PULL_MAX: Duration = Duration::from_secs(10);

/// What a prefill worker says, watched: a worker that hangs or is gone does not keep its reader waiting.
pub struct Events {
    stream: Streaming<v1::PrefillEvent>,
    last_news: Instant,
}

impl Events {
    /// Watches a call's events from now on.
    pub fn new(stream: Streaming<v1::PrefillEvent>) -> Self {
        Self { stream, last_news: Instant::now() }
    }

    /// The next event but progress; none at the stream's end. Losing this future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Kind>, PrefillError> {
        loop {
            let Some(event) = in_time(self.stream.message()).await?? else { return Ok(None) };
            match event.kind {
                Some(Kind::Progress(progress)) if progress.is_hung() => {
                    return Err(PrefillError::Hung);
                }
                Some(Kind::Progress(_)) if self.last_news.elapsed() > STANDSTILL_MAX => {
                    return Err(PrefillError::Standstill);
                }
                // A newer worker may say things that this one does not know.
                Some(Kind::Progress(_)) | None => {}
                Some(news) => {
                    self.last_news = Instant::now();
                    return Ok(Some(news));
                }
            }
        }
    }
}

/// A copy that was made.
pub struct Copied {
    /// How long it was waited for.
    pub waited: Duration,
    /// The name of the way that made it …
    pub way: &'static str,
    /// … what it went over …
    pub link: KvLink,
    /// … and how long it took that way.
    pub took: Duration,
}

/// The prefill worker's side of a handoff: whose blocks, and by what right.
#[derive(Clone)]
pub struct Source {
    worker: WorkerLife,
    /// How its blocks are read.
    pub way: Way,
    /// What copies by this way go over, and by tcp, which takes the place of each way that fails.
    link: KvLink,
    tcp_link: KvLink,
    lease: Lease,
    lease_duration: Duration,
}

impl Source {
    /// Reads what was granted. Errors: it is not what was asked for, or cannot be read from here.
    pub fn from_grant(
        worker: &v1::PrefillWorker,
        granted: v1::KvDescriptor,
        ours: &Context,
    ) -> Result<Self, PrefillError> {
        let capability = Capability::from_bytes(&granted.capability)
            .ok_or(PrefillError::Protocol("the capability is not 16 bytes long"))?;
        let layout: Option<KvLayout> = granted.layout.clone().map(Into::into);
        if layout.as_ref() != Some(ours.host.layout()) {
            return Err(PrefillError::Protocol("its KV layout is not ours"));
        }
        let asked = WorkerLife::new(&worker.worker_id, worker.incarnation);
        if WorkerLife::new(&granted.worker_id, granted.incarnation) != asked {
            return Err(PrefillError::Protocol("the lease is another worker's"));
        }
        let way = ours.ways.choose(&granted.endpoints, &asked)?;
        let link = |way| ours.transfers.link(way, &granted);
        Ok(Self {
            link: link(way.name()),
            tcp_link: link(TCP),
            way,
            worker: asked,
            lease: Lease { id: LeaseId(granted.lease), capability },
            lease_duration: Duration::from_millis(u64::from(granted.lease_ms.max(30))),
        })
    }

    /// Copies blocks of this process.
    pub fn pull_here(
        &self,
        ways: &Ways,
        copies: &[BlockCopy],
        reservation: &mut Reservation,
    ) -> Result<Copied, TransferError> {
        let began = Instant::now();
        let (now, writer) = (began.into_std(), &mut reservation.writer);
        ways.local.pull(now, &self.worker, self.lease, copies, writer)?;
        let took = began.elapsed();
        Ok(Copied { waited: took, way: self.way.name(), link: self.link, took })
    }

    /// Copies blocks by whatever way.
    pub async fn pull(
        &self,
        ways: &Ways,
        copies: &[BlockCopy],
        reservation: &mut Reservation,
    ) -> Result<Copied, TransferError> {
        let began = Instant::now();
        let (deadline, writer) = (began + PULL_MAX, &mut reservation.writer);
        let pulling = ways.pull(&self.way, &self.worker, self.lease, copies, writer, deadline);
        let Pulled { way, took } = pulling.await?;
        let link = if way == self.way.name() { self.link } else { self.tcp_link };
        Ok(Copied { waited: began.elapsed(), way, link, took })
    }

    /// Renews the lease beside the transfer until the handle is dropped. A renewal that fails
    /// shows when the lease is finished.
    pub fn keep_renewing(&self, mut client: PrefillClient<Channel>) -> AbortOnDropHandle<()> {
        let (reference, interval) = (self.reference(), self.lease_duration / 3);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                if in_time(client.renew_lease(reference.clone())).await.is_err() {
                    return;
                }
            }
        }))
    }

    /// Says that all was read. Errors: it does not count.
    pub async fn finish(&self, mut client: PrefillClient<Channel>) -> Result<(), PrefillError> {
        let state = in_time(client.finish_lease(self.reference())).await??;
        if state.into_inner().valid { Ok(()) } else { Err(PrefillError::LeaseEnded) }
    }

    fn reference(&self) -> v1::LeaseRef {
        let capability = self.lease.capability.to_bytes().to_vec().into();
        v1::LeaseRef { lease: self.lease.id.0, capability }
    }
}

/// The answer to a call. Errors: nothing is heard for too long.
pub async fn in_time<T>(future: impl Future<Output = T>) -> Result<T, PrefillError> {
    tokio::time::timeout(SILENCE_MAX, future).await.map_err(|_| PrefillError::Silent)
}
