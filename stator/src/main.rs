//! `stator`: reads its arguments, starts components, handles signals.

use std::io::IsTerminal;

use clap::Parser;
use protocol::v1::Role;
use stator::cli::{Cli, Command};
use stator::error::CommandError;
use stator::exit::{self, Exit};
use stator::{cuda_copies, gateway, gpus, health, load, router, serve, weights, worker};

/// The system's allocator costs a gateway a tenth of its time, and keeps more memory than is used
/// (bench/RESULTS.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    exit::now(start())
}

/// Runs the command, and gives its code.
fn start() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::for_arguments(&error),
    };
    init_logs();
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            return Exit::Unavailable.with(&format!("cannot start threads: {error}"));
        }
    };
    let ended = runtime.block_on(run(cli.command));
    // What is still under way (a cut stream, a copy) ends with the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => 0,
        Err((exit, sentence)) => exit.with(&sentence),
    }
}

/// A gateway has a thread per two cores: its work is in small pieces, and to wake another thread for
/// each costs more than it gains (bench/RESULTS.md). `TOKIO_WORKER_THREADS` says otherwise.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let is_chosen = std::env::var_os("TOKIO_WORKER_THREADS").is_some();
    if let (Command::Gateway(_), false) = (command, is_chosen) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads(cores.div_ceil(2));
    }
    if let Command::UcxAgent = command {
        builder.worker_threads(1);
    }
    builder.enable_all().build()
}

async fn run(command: Command) -> Result<(), (Exit, String)> {
    let ended = match command {
        Command::Serve(arguments) => serve::command(arguments).await,
        Command::Gateway(arguments) => gateway::command(arguments).await,
        Command::Router(arguments) => router::command(arguments).await,
        Command::PrefillWorker(arguments) => worker::command(Role::Prefill, arguments).await,
        Command::DecodeWorker(arguments) => worker::command(Role::Decode, arguments).await,
        Command::Health(arguments) => health::command(arguments).await,
        Command::Gpus(arguments) => gpus::command(&arguments),
        Command::UcxAgent => kv_transfer::ucx::run_agent(),
        Command::CudaCopies(arguments) => cuda_copies::command(arguments).await,
        Command::WeightsKeeper(arguments) => weights::command(arguments).await,
        Command::Loadtest(arguments) => {
            let ended = load::command(arguments).await;
            return ended.map_err(|error| (load::exit(&error), error.to_string()));
        }
    };
    ended.map_err(|error: CommandError| (error.exit(), error.to_string()))
}

/// Logs go to standard error; `STATOR_LOG` says how much (`info`, `stator=debug`, …).
fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STATOR_LOG")
        // The NATS client says again, in its own words, what its errors say.
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,async_nats=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
