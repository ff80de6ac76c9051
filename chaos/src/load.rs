//! Keeps a number of streams running, and compares each answer with the expected one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answer::{Answer, Broken};
use crate::client::{self, Progress};
use crate::question::Question;

/// A client whose request was refused or broke waits this long before it asks again, lest a broken
/// cluster be asked thousands of times.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(200);

/// A question and the answer that an undisturbed server gave.
#[derive(Clone, Debug)]
pub struct Known {
    /// The question.
    pub question: Question,
    /// Its answer.
    pub answer: Answer,
}

/// Who asks whom.
#[derive(Clone)]
pub struct LoadConfig {
    /// Streams at once.
    pub streams: usize,
    /// `http://…/v1` of each gateway; clients take them in turn.
    pub base_urls: Vec<String>,
    /// What is asked.
    pub known: Arc<Vec<Known>>,
    /// Decides who asks what in which order.
    pub seed: u64,
    /// Begins the requests' ids.
    pub name: String,
}

/// How an answer compares.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// All is as expected.
    Same,
    /// It is complete, and differs.
    Wrong(String),
    /// There is no complete answer.
    Failed(String),
}

/// One request, from its end.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// As in the processes' logs.
    pub request_id: String,
    /// The question's name.
    pub question: String,
    /// How it went.
    pub verdict: Verdict,
    /// When it was sent.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// From sending to the first text.
    pub first_token_after: Option<Duration>,
    /// The longest time between two pieces of its text.
    pub longest_stall: Duration,
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

struct Shared {
    config: LoadConfig,
    http: reqwest::Client,
    is_ending: AtomicBool,
    requests: AtomicU64,
    /// One per client: the request that it waits for.
    progress: Vec<Mutex<Arc<Progress>>>,
    outcomes: Mutex<Vec<Outcome>>,
}

impl Load {
    /// Starts the clients.
    pub fn start(http: reqwest::Client, config: LoadConfig) -> Self {
        let shared = Arc::new(Shared {
            http,
            is_ending: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            progress: (0..config.streams).map(|_| Mutex::default()).collect(),
            outcomes: Mutex::default(),
            config,
        });
        let mut clients = JoinSet::new();
        for client in 0..shared.config.streams {
            clients.spawn(run_client(shared.clone(), client));
        }
        Self { shared, clients }
    }

    /// Streams that have brought their first token and not their last.
    pub fn past_first_token(&self) -> usize {
        let slots = self.shared.progress.iter();
        slots.filter(|progress| progress.lock().is_past_first_token()).count()
    }

    /// Asks nothing new and waits for what is under way. Gives every request since the start.
    pub async fn finish(mut self) -> Vec<Outcome> {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut self.shared.outcomes.lock())
    }
}

async fn run_client(shared: Arc<Shared>, client: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(shared.config.seed);
    random.set_stream(client as u64);
    while !shared.is_ending.load(Ordering::Relaxed) {
        let known = &shared.config.known[random.random_range(0..shared.config.known.len())];
        let outcome = ask(&shared, client, known).await;
        let failed = matches!(outcome.verdict, Verdict::Failed(_));
        shared.outcomes.lock().push(outcome);
        if failed {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

async fn ask(shared: &Shared, client: usize, known: &Known) -> Outcome {
    let LoadConfig { base_urls, name, .. } = &shared.config;
    let request_id = format!("{name}-{}", shared.requests.fetch_add(1, Ordering::Relaxed));
    let progress = Arc::new(Progress::default());
    *shared.progress[client].lock() = progress.clone();
    let base_url = &base_urls[client % base_urls.len()];
    let began = Instant::now();
    let asked = client::ask(&shared.http, base_url, &known.question, &request_id, &progress).await;
    *shared.progress[client].lock() = Arc::default();
    Outcome {
        request_id,
        question: known.question.name.clone(),
        verdict: verdict(asked.answer, &known.answer),
        began,
        ended: Instant::now(),
        first_token_after: asked.first_token_after,
        longest_stall: asked.longest_stall,
    }
}

fn verdict(answer: Result<Answer, Broken>, expected: &Answer) -> Verdict {
    match answer {
        Ok(answer) => answer.difference(expected).map_or(Verdict::Same, Verdict::Wrong),
        Err(Broken(reason)) => Verdict::Failed(reason),
    }
}
