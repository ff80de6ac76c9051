//! A load test from beginning to end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::arrivals::ArrivalTimes;
use crate::calibrate::Calibration;
use crate::chunk::error_in_body;
use crate::client::Client;
use crate::conversation::Conversations;
use crate::error::LoadtestError;
use crate::output::Output;
use crate::processes::Processes;
use crate::progress::Progress;
use crate::random::{Purpose, random};
use crate::recorder::{Objectives, Recorder, Window};
use crate::report::Report;
use crate::request::RequestSettings;
use crate::target::Target;
use crate::turn::Shared;
use crate::{closed_loop, open_files, open_loop};

/// How often processes are looked at and progress is shown.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);

/// How much of the list of models is read.
const MODELS_BYTES_MAX: usize = 1 << 20;

/// Checks everything, runs the load test, and writes its report where `args.json` says.
/// `interrupted` ends the run early: what was measured until then is the report.
///
/// Errors: the arguments are wrong, or the server cannot be used. A server that fails every request
/// of the run itself is a report; see [`Report::check_success`].
pub async fn run(
    args: Args,
    interrupted: impl Future<Output = ()>,
) -> Result<Report, LoadtestError> {
    args.check()?;
    let target = Target::parse(&args.url)?;
    let mut processes = Processes::find(&args.pid)?;
    let output = args.json.as_deref().map(Output::open).transpose()?;
    let running_max = open_files::raise_limit();
    let mut interrupted = pin!(interrupted);
    let prepared = tokio::select! {
        prepared = prepare(&args, &target) => prepared?,
        () = &mut interrupted => return Err(LoadtestError::Interrupted),
    };
    let Prepared { client, settings, calibration } = prepared;
    let words = calibration.words(&args)?;
    let conversations = Conversations::new(args.seed, args.turns, words);
    let objectives = Objectives { ttft_ms: args.slo_ttft_ms, itl_ms: args.slo_itl_ms };
    processes.restart();
    let window = Window::from_now(args.warmup, args.duration, args.drain);
    let recorder = Arc::new(Recorder::new(window, objectives));
    let model = settings.model.clone();
    let shared = Shared { client, settings, conversations, recorder: recorder.clone() };

    let stop = CancellationToken::new();
    let load = load(&args, Arc::new(shared), running_max, &stop);
    watch(load, interrupted, &stop, &recorder, &mut processes).await;
    let interrupted_at = stop.is_cancelled().then(Instant::now);
    let report =
        Report::new(&args, model, calibration, &recorder, interrupted_at, processes.used());
    if let Some(output) = output {
        output.write(&report.to_json())?;
    }
    Ok(report)
}

/// The list of models and the requests that calibrate prompts take this long together at most: large
/// models on CPUs are slow.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(120);

struct Prepared {
    client: Client,
    settings: RequestSettings,
    calibration: Calibration,
}

async fn prepare(args: &Args, target: &Target) -> Result<Prepared, LoadtestError> {
    let prepared = tokio::time::timeout(PREPARE_TIMEOUT, prepare_in_time(args, target)).await;
    prepared.unwrap_or_else(|_| {
        let seconds = PREPARE_TIMEOUT.as_secs();
        Err(LoadtestError::Server(format!(
            "the server accepts requests and has not answered the first ones in {seconds} s"
        )))
    })
}

async fn prepare_in_time(args: &Args, target: &Target) -> Result<Prepared, LoadtestError> {
    let api_key = std::env::var("OPENAI_API_KEY").ok();
    let client = Client::connect(target, api_key.as_deref(), !args.new_connections).await?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&client).await?,
    };
    let settings = RequestSettings {
        model,
        output_tokens: args.output_tokens,
        ignore_eos: !args.no_ignore_eos,
        seed: args.seed,
    };
    let calibration = Calibration::measure(&client, &settings).await?;
    Ok(Prepared { client, settings, calibration })
}

async fn first_model(client: &Client) -> Result<String, LoadtestError> {
    let unusable = |why: &str| {
        LoadtestError::Server(format!(
            "the server's list of models (/v1/models) {why}; try --model"
        ))
    };
    let sent = client.send(Method::GET, "/models", Bytes::new()).await;
    let reply = sent.map_err(|why| unusable(&format!("does not come: {why}")))?;
    let status = reply.response.status();
    let body = client.whole(reply, MODELS_BYTES_MAX).await;
    if !status.is_success() {
        let told = error_in_body(&body);
        return Err(unusable(&format!("is refused with HTTP {}: {told}", status.as_u16())));
    }
    let list: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = list["data"][0]["id"].as_str().ok_or_else(|| unusable("names none"))?;
    Ok(name.into())
}

/// Sends everything, and waits for what runs at the end.
async fn load(args: &Args, shared: Arc<Shared>, running_max: usize, stop: &CancellationToken) {
    let mut running = match args.rate {
        Some(rate_per_s) => {
            let random = random(args.seed, Purpose::Arrivals);
            let arrivals = ArrivalTimes::new(args.arrivals, rate_per_s, random);
            open_loop::run(shared.clone(), arrivals, running_max, stop).await
        }
        None => closed_loop::start(&shared, args.concurrency.unwrap_or(1)),
    };
    let drain_end = shared.recorder.window.drain_end;
    tokio::select! {
        () = all_end(&mut running) => {}
        () = tokio::time::sleep_until(drain_end.into()) => {
            shared.recorder.drain_is_over.store(true, Relaxed);
        }
        () = stop.cancelled() => {}
    }
    running.shutdown().await;
}

async fn all_end(running: &mut JoinSet<()>) {
    while let Some(ended) = running.join_next().await {
        if let Err(panicked) = ended {
            std::panic::resume_unwind(panicked.into_panic());
        }
    }
}

/// Waits for `load`, which `interrupted` stops, while processes are looked at and progress is
/// shown.
async fn watch(
    load: impl Future<Output = ()>,
    mut interrupted: impl Future<Output = ()> + Unpin,
    stop: &CancellationToken,
    recorder: &Recorder,
    processes: &mut Processes,
) {
    let mut load = pin!(load);
    let mut progress = Progress::new(recorder.window);
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut load => break,
            () = &mut interrupted, if !stop.is_cancelled() => stop.cancel(),
            _ = ticks.tick() => {
                processes.sample();
                progress.show(&recorder.live);
            }
        }
    }
    processes.sample();
    progress.clear();
}
