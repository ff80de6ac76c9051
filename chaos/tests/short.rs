//! The short form of `make chaos`, and whether chaos notices what it is for.

use std::path::PathBuf;

use chaos::binaries;
use chaos::cluster::{Counts, Defect};
use chaos::fault::Kind;
use chaos::phase::Phase;
use chaos::report::Report;
use chaos::run::{RunConfig, run};
use tokio::sync::Mutex;

/// Clusters run one after the other: several at once would be slow, not undisturbed.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn chaos(name: &str, kinds: &str, phase: Phase, defect: Option<Defect>) -> Report {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kinds = Kind::all().into_iter().filter(|kind| kind.to_string().contains(kinds)).collect();
    let config = RunConfig {
        seed: 1,
        phases: vec![phase],
        kinds,
        stator: binaries::stator(None).expect("a stator command"),
        nats_server: testkit::nats_server_binary(),
        model: binaries::repository().join("models/demo"),
        logs: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name),
        counts: Counts { gateways: 1, routers: 2, prefill_workers: 2, decode_workers: 3 },
        defect,
    };
    run(&config).await.expect("a run to its end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_single_fault_costs_a_request_or_changes_a_byte() {
    let faults = Kind::all().len();
    let report = chaos("chaos-short", "", Phase::short(10, faults, 2), None).await;
    assert!(report.is_clean(), "{report}");
    assert!(report.redispatched() > 0, "the faults hit nobody: {report}");
    println!("{report}");
}

/// Workers that take blocks from some of their sequences for others, and die meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_pools_under_faults_neither_starve_nor_leak() {
    let report = chaos("chaos-tight", "worker: ", Phase::short_tight(20, 4, 1), None).await;
    assert!(report.is_clean(), "{report}");
    println!("{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_migration_is_noticed() {
    let (phase, defect) = (Phase::short(8, 2, 0), Some(Defect::BrokenMigration));
    let report = chaos("chaos-broken-migration", "decode worker: kill", phase, defect).await;
    assert!(report.wrong() > 0 && !report.is_clean(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_block_is_noticed() {
    let (phase, defect) = (Phase::short(8, 0, 0), Some(Defect::CorruptBlock));
    let report = chaos("chaos-corrupt-block", "decode worker: kill", phase, defect).await;
    assert!(report.wrong() > 0 && !report.is_clean(), "{report}");
}
