//! A client of the OpenAI API that notes how its stream went.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{Answer, AnswerBuilder, Broken};
use crate::question::Question;

/// A stream without an event for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// An event has at most this many bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// How a stream gets on, for whoever looks on from outside.
#[derive(Debug, Default)]
pub struct Progress {
    has_first_token: AtomicBool,
}

impl Progress {
    /// Whether it has brought text or tokens.
    pub fn is_past_first_token(&self) -> bool {
        self.has_first_token.load(Ordering::Relaxed)
    }
}

/// What came of a question.
#[derive(Debug)]
pub struct Asked {
    /// The answer, or why there is none.
    pub answer: Result<Answer, Broken>,
    /// From sending to the first text; `None` if none came.
    pub first_token_after: Option<Duration>,
    /// The longest time between two pieces of text.
    pub longest_stall: Duration,
}

/// Asks, and reads the stream to its end.
pub async fn ask(
    http: &reqwest::Client,
    base_url: &str,
    question: &Question,
    request_id: &str,
    progress: &Progress,
) -> Asked {
    let mut reading = Reading::new(progress);
    let answer = match reading.read(http, base_url, question, request_id).await {
        Ok(()) => std::mem::take(&mut reading.builder).finish(),
        Err(broken) => Err(broken),
    };
    let Reading { first_token_after, longest_stall, .. } = reading;
    Asked { answer, first_token_after, longest_stall }
}

struct Reading<'a> {
    progress: &'a Progress,
    builder: AnswerBuilder,
    began: Instant,
    last_text: Option<Instant>,
    first_token_after: Option<Duration>,
    longest_stall: Duration,
}

impl<'a> Reading<'a> {
    fn new(progress: &'a Progress) -> Self {
        Self {
            progress,
            builder: AnswerBuilder::default(),
            began: Instant::now(),
            last_text: None,
            first_token_after: None,
            longest_stall: Duration::ZERO,
        }
    }

    async fn read(
        &mut self,
        http: &reqwest::Client,
        base_url: &str,
        question: &Question,
        request_id: &str,
    ) -> Result<(), Broken> {
        let url = format!("{base_url}/{}", question.path);
        let body = body(question, request_id);
        let request = http.post(url).header("x-request-id", request_id).json(&body).send();
        let mut response = in_time(request).await?.map_err(|error| broken("cannot ask", &error))?;
        if !response.status().is_success() {
            let status = response.status();
            let text = in_time(response.text()).await?.unwrap_or_default();
            return Err(Broken(format!("refused with {status}: {text}")));
        }
        let mut lines = Lines::default();
        let mut silent_since = Instant::now();
        loop {
            let left = SILENCE_MAX.saturating_sub(silent_since.elapsed());
            let piece =
                tokio::time::timeout(left, response.chunk()).await.map_err(|_| silence())?;
            let Some(bytes) = piece.map_err(|error| broken("the stream broke", &error))? else {
                return Ok(());
            };
            for data in lines.feed(&bytes)? {
                silent_since = Instant::now();
                if self.builder.event(&data)? {
                    self.text_came();
                }
            }
        }
    }

    fn text_came(&mut self) {
        let now = Instant::now();
        match self.last_text {
            Some(last) => self.longest_stall = self.longest_stall.max(now - last),
            None => self.first_token_after = Some(now - self.began),
        }
        self.last_text = Some(now);
        self.progress.has_first_token.store(true, Ordering::Relaxed);
    }
}

fn body(question: &Question, request_id: &str) -> Value {
    let mut body = question.body.clone();
    if question.is_salted {
        body["cache_salt"] = json!(request_id);
    }
    body
}

async fn in_time<T>(future: impl Future<Output = T>) -> Result<T, Broken> {
    tokio::time::timeout(SILENCE_MAX, future).await.map_err(|_| silence())
}

fn silence() -> Broken {
    Broken(format!("silent for {SILENCE_MAX:?}"))
}

/// An error with its causes: reqwest's own words leave them out.
fn broken(what: &str, error: &reqwest::Error) -> Broken {
    let mut text = format!("{what}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Broken(text)
}

/// The lines of a stream of server-sent events.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The data of the events whose lines this completes. Errors: a line is too long or not UTF-8.
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, Broken> {
        self.rest.extend_from_slice(bytes);
        let mut data = Vec::new();
        let mut from = 0;
        while let Some(length) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
            let line = &self.rest[from..from + length];
            let line = std::str::from_utf8(line).map_err(|_| Broken("not UTF-8".into()))?;
            data.extend(line.strip_prefix("data: ").map(str::to_string));
            from += length + 1;
        }
        self.rest.drain(..from);
        match self.rest.len() > EVENT_BYTES_MAX {
            true => Err(Broken(format!("an event of more than {EVENT_BYTES_MAX} bytes"))),
            false => Ok(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_any_pieces() {
        let stream = "data: é1\n\n: keep-alive\n\ndata: 2\n\n".as_bytes();
        for size in 1..stream.len() {
            let mut lines = Lines::default();
            let pieces = stream.chunks(size).map(|piece| lines.feed(piece).unwrap());
            assert_eq!(pieces.flatten().collect::<Vec<_>>(), ["é1", "2"], "pieces of {size}");
        }
        assert!(Lines::default().feed(b"data: \xff\n").is_err());
        assert!(Lines::default().feed(&vec![b'a'; EVENT_BYTES_MAX + 1]).is_err());
    }
}
