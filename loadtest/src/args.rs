//! The arguments of `stator loadtest`, and what must hold among them.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::error::LoadtestError;

/// Arguments of `loadtest`. None is read from the environment, so that a command line says what was
/// measured; only the API key is, as in OpenAI's clients (`OPENAI_API_KEY`).
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("load").required(true).args(["rate", "concurrency"]))]
pub struct Args {
    /// Server, such as http://127.0.0.1:8000, with or without /v1; its chat completions are asked
    pub url: String,

    /// Open loop: turns that arrive per second, however long the server takes
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,

    /// Open loop: how arrivals are spaced
    #[arg(long, value_enum, default_value_t = Arrivals::Poisson, conflicts_with = "concurrency")]
    pub arrivals: Arrivals,

    /// Closed loop: workers that each send their next turn when the last one has ended
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub concurrency: Option<u32>,

    /// A new connection for each request: for servers that close kept ones while a request is on its way
    #[arg(long)]
    pub new_connections: bool,

    /// How long turns are sent and measured (500ms, 30s, 2m)
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub duration: Duration,

    /// How long turns are sent before that, and not measured
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub warmup: Duration,

    /// How long running requests are waited for at the end
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub drain: Duration,

    /// Name of the model; the first one that the server lists if absent
    #[arg(long)]
    pub model: Option<String>,

    /// Tokens of a conversation's first prompt, on average, chat template included
    #[arg(long, value_name = "TOKENS", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub input_tokens: u32,

    /// Tokens of each answer: its `max_tokens`
    #[arg(long, value_name = "TOKENS", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub output_tokens: u32,

    /// How many of the input tokens are the same in all conversations, as their system message
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub prefix_tokens: u32,

    /// Turns of each conversation. A later turn sends the history with the server's answers, and a
    /// new question as long as the first one (input tokens without the prefix)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub turns: u32,

    /// Decides arrivals and prompts; the same seed asks the same again, which a prefix cache knows
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,

    /// Let answers end by themselves instead of sending `ignore_eos`
    #[arg(long)]
    pub no_ignore_eos: bool,

    /// Goodput counts requests whose first token came within this time
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub slo_ttft_ms: Option<f64>,

    /// Goodput counts requests whose mean time per output token after the first is at most this
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub slo_itl_ms: Option<f64>,

    /// Process whose CPU time and memory are reported, such as the server's (repeatable; Linux)
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Vec<u32>,

    /// Write the report as JSON too; `-` is standard output, and the table goes to standard error
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
}

/// How the arrivals of an open loop are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Independently of each other, as those of many users are
    Poisson,
    /// Evenly
    Constant,
}

/// Longer runs are a mistake in the units.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

impl Args {
    /// Checks what one argument alone does not show.
    pub(crate) fn check(&self) -> Result<(), LoadtestError> {
        let wrong = |sentence: String| Err(LoadtestError::Arguments(sentence));
        if self.prefix_tokens >= self.input_tokens {
            return wrong(format!(
                "--prefix-tokens {} must be less than --input-tokens {}: the prefix is a part of \
                 the input",
                self.prefix_tokens, self.input_tokens
            ));
        }
        for (name, duration) in [("warmup", self.warmup), ("drain", self.drain)] {
            if duration > DURATION_MAX {
                return wrong(format!("--{name} is more than a week"));
            }
        }
        if !self.pid.is_empty() && !cfg!(target_os = "linux") {
            return wrong("--pid needs Linux's /proc; leave it out on this system".into());
        }
        Ok(())
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if rate > 0.0 && rate <= 1e6 { Ok(rate) } else { Err("not within 0 (excluded) and 1e6".into()) }
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let ms: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if ms > 0.0 && ms.is_finite() { Ok(ms) } else { Err("not a time above 0".into()) }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        return Err("nothing can be measured in no time".into());
    }
    if duration > DURATION_MAX { Err("more than a week".into()) } else { Ok(duration) }
}
