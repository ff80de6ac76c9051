//! Measures one loaded model as it is asked to on standard input, so that whoever asks can measure
//! something else in between: a JSON object per line is a command, a JSON object per line answers it.
//!
//!     cargo run --release -p engine --example measure -- MODEL [THREADS] [POOL_TOKENS]
//!
//! `MODEL` is what `stator serve` takes. `bench/engine` asks these questions.

mod limits;
mod steps;

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Value, json};

use steps::Measured;

const THREADS: usize = 2;
const POOL_TOKENS: usize = 1 << 15;

/// What can be asked for.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// `steps` steps of `batch` sequences that have `context` tokens each when the first of them
    /// begins. Sequences of one series begin with the same tokens, which are computed once as long
    /// as the pool holds them.
    Decode { batch: usize, context: usize, steps: usize, series: String },
    /// A prompt of so many tokens, up to the choice of the first token; cached ones as above.
    Prefill { tokens: usize, series: String },
    /// Bytes per second that the threads read of memory.
    Bandwidth {},
    /// The same of a file's pages, which must be in the page cache.
    FileBandwidth { path: String },
    /// Operations per second of the threads, with operands in registers.
    Arithmetic {},
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: measure MODEL [THREADS] [POOL_TOKENS]")?;
    let threads = arguments.next().map_or(Ok(THREADS), |text| text.parse())?;
    let pool_tokens = arguments.next().map_or(Ok(POOL_TOKENS), |text| text.parse())?;
    let mut measured = Measured::load(Path::new(&model), threads, pool_tokens)?;
    say(&measured.description())?;
    for line in stdin().lock().lines() {
        let answered = answer(&mut measured, threads, &line?);
        say(&answered.unwrap_or_else(|error| json!({"error": error})))?;
    }
    Ok(())
}

fn say(answer: &Value) -> std::io::Result<()> {
    writeln!(stdout(), "{answer}")?;
    stdout().flush()
}

fn answer(measured: &mut Measured, threads: usize, line: &str) -> Result<Value, String> {
    let command = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
    match command {
        Command::Decode { batch, context, steps, series } => {
            measured.decode(batch, context, steps, &series)
        }
        Command::Prefill { tokens, series } => measured.prefill(tokens, &series),
        Command::Bandwidth {} => limits::memory_bandwidth(threads),
        Command::FileBandwidth { path } => limits::file_bandwidth(Path::new(&path), threads),
        Command::Arithmetic {} => Ok(limits::arithmetic(threads)),
    }
}
