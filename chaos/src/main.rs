//! `chaos`: see the library's description.

use std::path::PathBuf;
use std::process::ExitCode;

use chaos::binaries;
use chaos::cluster::{Counts, Defect};
use chaos::fault::Kind;
use chaos::phase::Phase;
use chaos::run::RunConfig;
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

/// Breaks a cluster's parts under load and compares every answer with an undisturbed one.
#[derive(Debug, Parser)]
#[command(name = "chaos", about, max_term_width = 100)]
struct Arguments {
    /// Decides questions, faults and their order
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Faults that strike alone
    #[arg(long, default_value_t = 44)]
    faults: usize,

    /// Pairs of faults that strike together, in addition
    #[arg(long, default_value_t = 0)]
    overlapping: usize,

    /// What computes; with all, the mock has half of the faults, and the mock with small pools and the
    /// CPU a quarter each
    #[arg(long, value_enum, default_value_t = Engine::All)]
    engine: Engine,

    /// Streams that run at once
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(8..=32))]
    streams: u16,

    /// Only the kinds of faults whose name contains this, such as "decode worker" or ": kill"
    #[arg(long, default_value = "")]
    only: String,

    /// Gateways
    #[arg(long, default_value_t = 1)]
    gateways: usize,

    /// A defect that a process is told to have, to see that it is noticed
    #[arg(long, value_enum)]
    defect: Option<DefectName>,

    /// The stator command; STATOR_BINARY or the one beside this program if absent
    #[arg(long)]
    binary: Option<PathBuf>,

    /// The nats-server command; STATOR_NATS_SERVER, target/venv/bin or PATH if absent
    #[arg(long)]
    nats_server: Option<PathBuf>,

    /// Where logs go; target/chaos/<seed> if absent
    #[arg(long)]
    logs: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    Mock,
    /// The mock, with pools that are too small for all streams.
    Tight,
    Cpu,
    #[value(alias = "both")]
    All,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DefectName {
    BrokenMigration,
    CorruptBlock,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = config(arguments)?;
    let mut terminated = signal(SignalKind::terminate())?;
    let report = tokio::select! {
        report = chaos::run::run(&config) => report?,
        // Dropping the run kills its processes.
        _interrupted = tokio::signal::ctrl_c() => return Ok(ExitCode::from(130)),
        _terminated = terminated.recv() => return Ok(ExitCode::from(143)),
    };
    let text = report.to_string();
    std::fs::write(config.logs.join("report.md"), &text)?;
    println!("{text}");
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn config(arguments: Arguments) -> anyhow::Result<RunConfig> {
    let logs = arguments.logs.clone();
    let kinds = Kind::all().into_iter();
    let kinds: Vec<Kind> =
        kinds.filter(|kind| kind.to_string().contains(&arguments.only)).collect();
    anyhow::ensure!(!kinds.is_empty(), "no kind of fault is called {:?}", arguments.only);
    let phases = phases(&arguments);
    let (seed, gateways) = (arguments.seed, arguments.gateways);
    Ok(RunConfig {
        seed,
        phases,
        kinds,
        stator: binaries::stator(arguments.binary)?,
        nats_server: arguments.nats_server.unwrap_or_else(testkit::nats_server_binary),
        model: binaries::repository().join("models/demo"),
        logs: logs.unwrap_or_else(|| binaries::repository().join(format!("target/chaos/{seed}"))),
        counts: Counts { gateways, routers: 2, prefill_workers: 2, decode_workers: 3 },
        defect: arguments.defect.map(|defect| match defect {
            DefectName::BrokenMigration => Defect::BrokenMigration,
            DefectName::CorruptBlock => Defect::CorruptBlock,
        }),
    })
}

fn phases(arguments: &Arguments) -> Vec<Phase> {
    let Arguments { faults, overlapping, engine, .. } = *arguments;
    let streams = usize::from(arguments.streams);
    match engine {
        Engine::Mock => vec![Phase::mock(streams, faults, overlapping)],
        Engine::Tight => vec![Phase::tight(2 * streams, faults, overlapping)],
        Engine::Cpu => vec![Phase::cpu(streams.min(8), faults, overlapping)],
        Engine::All => {
            let quarter = |count: usize| count / 4;
            let rest = |count: usize| count - 2 * quarter(count);
            vec![
                Phase::mock(streams, rest(faults), rest(overlapping)),
                Phase::tight(2 * streams, quarter(faults), quarter(overlapping)),
                Phase::cpu(streams.min(8), quarter(faults), quarter(overlapping)),
            ]
        }
    }
}
