//! The choices of one request side by side: several of one prompt, or of several prompts.
//!
//! Each choice is a request of its own to the workers, so that each migrates by itself. Those of one
//! prompt follow its first, once that decodes: they go to its worker, which has the prompt's blocks by
//! then, and compute no more than the prompt's last block.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::dispatch::{Dispatcher, Prompt};
use crate::generation::{Generation, Piece, Transcription};
use crate::migration::TokenStream;
use crate::openai::{ApiError, Usage};

/// Choices of one request that are under way at once; further ones wait until one has ended.
const CHOICES_AT_ONCE: usize = 64;

/// What one of the choices gained.
pub struct News {
    /// Which one.
    pub choice: usize,
    /// What.
    pub piece: Piece,
}

/// See the module's description. Dropping it cancels all choices.
pub struct Choices {
    /// Under which arithmetic the first began.
    pub numerics_id: String,
    /// Why the first went where it went; empty unless asked for.
    pub explanation: String,
    usage: Usage,
    tracks: Tracks,
}

/// One choice is the ordinary case, and costs nothing beside it.
enum Tracks {
    /// All choices have ended.
    None(VecDeque<News>),
    One(Box<Generation>),
    Many(Box<Many>),
}

impl Choices {
    /// Begins to answer `prompts` (at least one), each `per_prompt` times; choice `i` is of prompt
    /// `i / per_prompt`. Errors: no worker can take the first.
    pub async fn begin(
        dispatcher: Arc<Dispatcher>,
        transcription: Transcription,
        mut prompts: VecDeque<Prompt>,
        per_prompt: usize,
    ) -> Result<Self, ApiError> {
        let usage = usage_of(&prompts);
        let led = led(&prompts, per_prompt);
        let first = prompts.pop_front().expect("a request has a prompt");
        let stream = TokenStream::begin(dispatcher.clone(), first).await?;
        let (numerics_id, explanation) =
            (stream.numerics_id().to_string(), stream.explanation().to_string());
        let generation = Generation::new(transcription.clone(), stream);
        let tracks = if per_prompt == 1 && prompts.is_empty() {
            Tracks::One(Box::new(generation))
        } else {
            Tracks::Many(Box::new(Many::new(
                dispatcher,
                transcription,
                generation,
                led,
                prompts,
                per_prompt,
            )))
        };
        Ok(Self { numerics_id, explanation, usage, tracks })
    }

    /// The same without a token: all choices end at once, and no worker is asked.
    pub fn without_tokens(prompts: &VecDeque<Prompt>, per_prompt: usize) -> Self {
        let ended = |choice| {
            let piece = Piece { finish: Some("length"), ..Default::default() };
            News { choice, piece }
        };
        Self {
            numerics_id: "none".into(),
            explanation: String::new(),
            usage: usage_of(prompts),
            tracks: Tracks::None((0..prompts.len() * per_prompt).map(ended).collect()),
        }
    }

    /// What some choice gains next; nothing once all have ended. Errors: no worker can go on with one,
    /// which ends them all. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<News>, ApiError> {
        let news = match &mut self.tracks {
            Tracks::None(ended) => ended.pop_front(),
            Tracks::One(generation) => {
                generation.next().await?.map(|piece| News { choice: 0, piece })
            }
            Tracks::Many(many) => many.next().await?,
        };
        Ok(news.inspect(|news| self.usage.add(&news.piece)))
    }

    /// What has come already, if anything.
    pub fn ready(&mut self) -> Option<News> {
        let news = match &mut self.tracks {
            Tracks::None(ended) => ended.pop_front()?,
            Tracks::One(generation) => News { choice: 0, piece: generation.ready()? },
            Tracks::Many(many) => many.ready()?,
        };
        self.usage.add(&news.piece);
        Some(news)
    }

    /// Counts so far, of all choices.
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

/// What prompts cost before anything was computed.
fn usage_of(prompts: &VecDeque<Prompt>) -> Usage {
    let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len() as u32).sum();
    Usage { prompt_tokens, ..Default::default() }
}

impl Usage {
    fn add(&mut self, piece: &Piece) {
        self.completion_tokens += piece.tokens;
        self.cached_tokens += piece.cached_tokens.unwrap_or(0);
    }
}

/// A choice's next piece, and the choice.
type Turn = BoxFuture<'static, Result<(usize, Generation, Piece), ApiError>>;

struct Many {
    dispatcher: Arc<Dispatcher>,
    transcription: Transcription,
    per_prompt: usize,
    turns: FuturesUnordered<Turn>,
    /// Choices that have not begun.
    waiting: VecDeque<(usize, Prompt)>,
    /// Prompts whose first choice does not decode yet, with tokens that it has.
    led: Vec<Led>,
    /// A failure that has come and waits to be told.
    failed: Option<ApiError>,
}

/// A prompt of which further choices are wanted.
struct Led {
    /// Its first choice.
    leader: usize,
    prompt: Prompt,
    tokens: u32,
}

/// All prompts, where further choices are wanted of each.
fn led(prompts: &VecDeque<Prompt>, per_prompt: usize) -> Vec<Led> {
    let led = |(index, prompt): (usize, &Prompt)| Led {
        leader: index * per_prompt,
        prompt: prompt.clone(),
        tokens: 0,
    };
    prompts.iter().filter(|_| per_prompt > 1).enumerate().map(led).collect()
}

impl Many {
    fn new(
        dispatcher: Arc<Dispatcher>,
        transcription: Transcription,
        first: Generation,
        led: Vec<Led>,
        prompts: VecDeque<Prompt>,
        per_prompt: usize,
    ) -> Self {
        let leaders = (1..).map(|index| index * per_prompt).zip(prompts);
        let turns = FuturesUnordered::from_iter([turn(0, first)]);
        Self {
            dispatcher,
            transcription,
            per_prompt,
            turns,
            waiting: leaders.collect(),
            led,
            failed: None,
        }
    }

    async fn next(&mut self) -> Result<Option<News>, ApiError> {
        self.begin_waiting();
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let Some(came) = self.turns.next().await else { return Ok(None) };
        came.map(|came| Some(self.take(came)))
    }

    fn ready(&mut self) -> Option<News> {
        self.begin_waiting();
        match self.turns.next().now_or_never()?? {
            Ok(came) => Some(self.take(came)),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    fn begin_waiting(&mut self) {
        while self.turns.len() < CHOICES_AT_ONCE
            && let Some((choice, prompt)) = self.waiting.pop_front()
        {
            let (dispatcher, transcription) = (self.dispatcher.clone(), self.transcription.clone());
            self.turns.push(Box::pin(async move {
                let stream = TokenStream::begin(dispatcher, prompt).await?;
                turn(choice, Generation::new(transcription, stream)).await
            }));
        }
    }

    fn take(&mut self, (choice, generation, mut piece): (usize, Generation, Piece)) -> News {
        self.lead(choice, &generation, &piece);
        if choice % self.per_prompt > 0 {
            // What its choices find of a prompt that the first has computed is no gain.
            piece.cached_tokens = None;
        }
        if piece.finish.is_none() {
            self.turns.push(turn(choice, generation));
        }
        News { choice, piece }
    }

    /// The further choices begin once their first has decoded a token after the prompt's: a first token
    /// alone may come before the blocks that it was computed from are where it goes on.
    fn lead(&mut self, choice: usize, generation: &Generation, piece: &Piece) {
        let Some(place) = self.led.iter().position(|led| led.leader == choice) else { return };
        let led = &mut self.led[place];
        led.tokens += piece.tokens;
        if led.tokens < 2 && piece.finish.is_none() {
            return;
        }
        let Led { leader, mut prompt, .. } = self.led.remove(place);
        prompt.near = generation.stream().map(|stream| stream.worker().clone());
        for offset in 1..self.per_prompt {
            let mut prompt = prompt.clone();
            prompt.sampling.choice = offset as u32;
            prompt.prompt_logprobs = None;
            self.waiting.push_back((leader + offset, prompt));
        }
    }
}

fn turn(choice: usize, mut generation: Generation) -> Turn {
    Box::pin(async move {
        let piece = generation.next().await?.unwrap_or_default();
        Ok((choice, generation, piece))
    })
}
