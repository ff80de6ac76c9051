//! What a router hears, in the order in which it is taken in.

use bytes::Bytes;
use futures::FutureExt;
use messaging::{Change, Network, Request, Requests, Subscription, Watch};
use protocol::{WorkerLife, subjects};

use crate::resync::{Resync, Snapshot};
use crate::run::RouterIdentity;
use crate::telling::Telling;

/// Something to take in, or to do.
pub enum News {
    /// A worker came, changed, or went. None: the watch lagged too far behind and has ended.
    Worker(Option<Change>),
    /// A load report.
    Load(Bytes),
    /// KV events.
    KvEvents(Bytes),
    /// A snapshot came, or none did.
    Snapshot(WorkerLife, Option<Snapshot>),
    /// Someone found a worker dead, silent or hung.
    Suspicion(Bytes),
    /// A router says what it gave away.
    Dispatches(Bytes),
    /// It is time to say what this one gave away.
    TellingDue,
    /// A question.
    Question(Request),
}

/// The bus, as far as a router listens.
pub struct Feeds {
    load: Subscription,
    kv_events: Subscription,
    suspicions: Subscription,
    dispatches: Subscription,
    questions: Requests,
}

impl Feeds {
    /// Listens from here on.
    pub fn new(network: &Network, identity: &RouterIdentity) -> Self {
        let bus = &network.bus;
        Self {
            load: bus.subscribe(subjects::LOAD),
            kv_events: bus.subscribe(subjects::KV_EVENTS),
            suspicions: bus.subscribe(subjects::SUSPECT),
            dispatches: bus.subscribe(subjects::DISPATCHES),
            questions: bus.respond(&subjects::route(&identity.id, identity.incarnation.0)),
        }
    }

    /// What comes next. Facts before questions: a question is answered by all that is known.
    pub async fn next(
        &mut self,
        workers: &mut Watch,
        resync: &mut Resync,
        telling: &Telling,
    ) -> News {
        tokio::select! {
            biased;
            change = workers.next() => News::Worker(change),
            Some(message) = self.load.next() => News::Load(message),
            Some(message) = self.kv_events.next() => News::KvEvents(message),
            (worker, snapshot) = resync.next() => News::Snapshot(worker, snapshot),
            Some(message) = self.suspicions.next() => News::Suspicion(message),
            Some(message) = self.dispatches.next() => News::Dispatches(message),
            () = telling.due() => News::TellingDue,
            Some(question) = self.questions.next() => News::Question(question),
        }
    }

    /// The next question, if one waits already.
    pub fn waiting_question(&mut self) -> Option<Request> {
        self.questions.next().now_or_never().flatten()
    }
}
