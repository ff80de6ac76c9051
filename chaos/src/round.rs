//! One fault: load comes up, the fault strikes and heals, everything comes to rest.

use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{Cluster, Held};
use crate::fault::Strike;
use crate::inflict::{Aimed, aim};
use crate::journal::{News, Note};
use crate::load::{Load, LoadConfig, Outcome, Verdict};

/// A fault counts only while this many streams are past their first token.
pub const STREAMS_MIN: usize = 4;

/// It is tried this long to have enough streams, and a pull where one is wanted.
const OCCASION_DEADLINE: Duration = Duration::from_secs(30);

/// For how long a round without a fault goes on.
const CALM: Duration = Duration::from_secs(2);

/// What happened in one round.
pub struct Round {
    /// What struck; `None` in a calm round.
    pub strike: Option<Strike>,
    /// Whom.
    pub victims: String,
    /// When; `None` if there was no occasion that counts.
    pub struck_at: Option<Instant>,
    /// Streams past their first token at that moment.
    pub past_first_token: usize,
    /// All requests of the round.
    pub outcomes: Vec<Outcome>,
    /// What the processes' logs say of them.
    pub notes: Vec<Note>,
    /// What was held at rest.
    pub held: Held,
    /// What went wrong with processes.
    pub errors: Vec<String>,
}

/// Runs a round, with a strike or without. Errors: the cluster can be used no further.
pub async fn run(
    cluster: &Cluster,
    http: &reqwest::Client,
    load: LoadConfig,
    strike: Option<&Strike>,
) -> Result<Round> {
    let _before = cluster.journal.take();
    let load = Load::start(http.clone(), load);
    let mut round = Round::new(strike);
    // The load begins all at once: a strike at any moment of a stream wants some time in between.
    tokio::time::sleep(strike.map(|strike| strike.delay).unwrap_or_default()).await;
    if let Some(aimed) = occasion(cluster, &load, strike).await? {
        round.past_first_token = load.past_first_token();
        round.struck_at = Some(Instant::now());
        match strike {
            Some(_) => round.inflict(aimed).await?,
            None => tokio::time::sleep(CALM).await,
        }
        // Healed is who serves again, while clients still ask.
        cluster.ready().await?;
    }
    round.outcomes = load.finish().await;
    round.held = cluster.rest().await?;
    round.notes = cluster.journal.take();
    for component in &cluster.components {
        component.check_alive()?;
    }
    round.note_panics();
    Ok(round)
}

/// Waits for a moment at which the strike counts, and aims. `None` if there is none.
async fn occasion(
    cluster: &Cluster,
    load: &Load,
    strike: Option<&Strike>,
) -> Result<Option<Vec<Aimed>>> {
    let needs_pull = strike.is_some_and(|strike| strike.during_pull);
    let is_now = || load.past_first_token() >= STREAMS_MIN && (!needs_pull || cluster.is_pulling());
    let waiting = async {
        loop {
            while !is_now() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let Some(strike) = strike else { return Ok(Vec::new()) };
            let aimed = aim(cluster, strike).await?;
            // Aiming took a moment.
            if is_now() {
                return Ok(aimed);
            }
        }
    };
    tokio::time::timeout(OCCASION_DEADLINE, waiting).await.ok().transpose()
}

impl Round {
    fn new(strike: Option<&Strike>) -> Self {
        Self {
            strike: strike.cloned(),
            victims: String::new(),
            struck_at: None,
            past_first_token: 0,
            outcomes: Vec::new(),
            notes: Vec::new(),
            held: Held::default(),
            errors: Vec::new(),
        }
    }

    async fn inflict(&mut self, aimed: Vec<Aimed>) -> Result<()> {
        self.victims = aimed.iter().map(Aimed::victims).collect::<Vec<_>>().join(" + ");
        let mut under_way = JoinSet::new();
        for aimed in aimed {
            under_way.spawn(async move { aimed.inflict().await });
        }
        while let Some(ended) = under_way.join_next().await {
            ended??;
        }
        Ok(())
    }

    fn note_panics(&mut self) {
        let panics = self.notes.iter().filter(|note| note.news == News::Panic);
        self.errors.extend(panics.map(|note| format!("{}: {}", note.process, note.line)));
    }

    /// Whether the fault struck when it counts.
    pub fn is_counted(&self) -> bool {
        self.struck_at.is_some()
    }

    /// Requests under way when the fault struck.
    pub fn in_flight(&self) -> usize {
        let Some(struck_at) = self.struck_at else { return 0 };
        let is_hit = |outcome: &&Outcome| outcome.began <= struck_at && struck_at < outcome.ended;
        self.outcomes.iter().filter(is_hit).count()
    }

    /// Requests without a whole answer.
    pub fn failed(&self) -> usize {
        self.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Failed(_))).count()
    }

    /// Requests with another answer than expected.
    pub fn wrong(&self) -> usize {
        self.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Wrong(_))).count()
    }

    /// How long it took until failed requests were in other hands: those given to another worker,
    /// and those whose decode worker had to compute the prompt itself.
    pub fn redispatched(&self) -> Vec<Duration> {
        self.after_strike(|note| match note.news {
            News::GivenElsewhere => true,
            // A worker that was stopped may yet say so of a request that another one has by now.
            News::PrefillLost => !self.was_given_away_before(note),
            News::WentOn | News::Panic => false,
        })
    }

    fn was_given_away_before(&self, note: &Note) -> bool {
        self.notes.iter().any(|other| {
            other.news == News::GivenElsewhere
                && other.request_id == note.request_id
                && other.at <= note.at
        })
    }

    /// How long it took until another worker's first token came: that, and computing again.
    pub fn went_on(&self) -> Vec<Duration> {
        self.after_strike(|note| note.news == News::WentOn)
    }

    /// Of each such note: from the strike, or from the request's sending if that came later.
    fn after_strike(&self, is_such: impl Fn(&Note) -> bool) -> Vec<Duration> {
        let Some(struck_at) = self.struck_at else { return Vec::new() };
        let took = |note: &Note| {
            let of = |outcome: &&Outcome| outcome.request_id == note.request_id;
            let began = self.outcomes.iter().find(of)?.began;
            note.at.checked_duration_since(began.max(struck_at))
        };
        self.notes.iter().filter(|note| is_such(note)).filter_map(took).collect()
    }

    /// The longest time that a client waited between two pieces of text.
    pub fn longest_stall(&self) -> Duration {
        self.outcomes.iter().map(|outcome| outcome.longest_stall).max().unwrap_or_default()
    }

    /// The longest time that a client waited for its first text.
    pub fn longest_first_token(&self) -> Duration {
        self.outcomes
            .iter()
            .filter_map(|outcome| outcome.first_token_after)
            .max()
            .unwrap_or_default()
    }

    /// Whether all went as it must, if it struck at all.
    pub fn is_sound(&self) -> bool {
        self.failed() + self.wrong() == 0 && self.held == Held::default() && self.errors.is_empty()
    }
}
