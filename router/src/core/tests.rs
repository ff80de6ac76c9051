//! Whom a request goes to, as tables over described workers.

mod places;

use protocol::v1::LatencyModel;

use super::*;
use crate::gauge::Gauge;

const NOW: Time = 60_000_000;

/// A worker as the tables below describe it.
#[derive(Clone, Default)]
struct Worker {
    name: &'static str,
    prefill: bool,
    numerics_id: &'static str,
    model: &'static str,
    running: u32,
    waiting_tokens: u64,
    us_per_token: f32,
    step_us: f32,
    steps: u64,
    free_blocks: u32,
    cached_blocks: usize,
    silent: bool,
    suspected: bool,
    draining: bool,
    block_bytes: u32,
    hardware: Option<v1::Hardware>,
    transfers: Vec<v1::TransferModel>,
}

fn decode(name: &'static str) -> Worker {
    let (numerics_id, model) = ("n", "m");
    Worker {
        name,
        numerics_id,
        model,
        free_blocks: 1000,
        us_per_token: 100.0,
        step_us: 1000.0,
        steps: 1_000_000_000,
        block_bytes: 1 << 16,
        ..Default::default()
    }
}

fn prefill(name: &'static str) -> Worker {
    Worker { prefill: true, ..decode(name) }
}

const PROMPT_TOKENS: usize = 1600;

fn hash(block: usize) -> BlockHash {
    BlockHash([block as u8 + 1; 16])
}

fn question() -> Question {
    let hashes: Vec<BlockHash> = (0..PROMPT_TOKENS / 16).map(hash).collect();
    Question {
        model: "m".into(),
        prompt_blocks: vec![("n".into(), hashes.clone()), ("other".into(), hashes)],
        prompt_tokens: PROMPT_TOKENS,
        max_tokens: 100,
        ..Default::default()
    }
}

fn registration(worker: &Worker) -> v1::WorkerRegistration {
    let role = if worker.prefill { Role::Prefill } else { Role::Decode };
    v1::WorkerRegistration {
        worker_id: worker.name.into(),
        role: role.into(),
        model: worker.model.into(),
        numerics_id: worker.numerics_id.into(),
        block_size: 16,
        kv_blocks: 1000,
        block_bytes: worker.block_bytes,
        max_num_batched_tokens: 512,
        draining: worker.draining,
        hardware: worker.hardware.clone(),
        ..Default::default()
    }
}

fn report(worker: &Worker) -> v1::LoadReport {
    v1::LoadReport {
        worker_id: worker.name.into(),
        running_sequences: worker.running,
        waiting_prompt_tokens: worker.waiting_tokens,
        free_blocks: worker.free_blocks,
        sequence_tokens: u64::from(worker.running) * 100,
        latency: Some(LatencyModel {
            step_us: worker.step_us,
            prefill_token_us: worker.us_per_token,
            sequence_us: 100.0,
            prefill_steps: worker.steps,
            decode_steps: worker.steps,
            ..Default::default()
        }),
        kv_sequence: 1,
        transfers: worker.transfers.clone(),
        ..Default::default()
    }
}

fn core(workers: &[Worker], now: Time) -> Core {
    let mut core = Core::default();
    for worker in workers {
        let before = now - 10_000_000;
        core.register(registration(worker), before);
        let reported = core.report(report(worker), if worker.silent { before } else { now });
        assert_eq!(reported, Sync::Kept);
        let held: Vec<BlockHash> = (0..worker.cached_blocks).map(hash).collect();
        let events = v1::KvEvents {
            worker_id: worker.name.into(),
            stored: protocol::hashes_to_bytes(&held),
            ..Default::default()
        };
        assert_eq!(core.kv_events(&events), Sync::Kept);
        if worker.suspected {
            core.suspect(&WorkerLife::new(worker.name, 0), now);
        }
    }
    core
}

fn gauge(core: &Core, worker: &WorkerLife) -> Gauge {
    core.workers.gauges()[core.workers.slot(worker).unwrap() as usize]
}

/// Routes one request; `expected` is "decode" or "decode<-prefill".
#[track_caller]
fn check_route(workers: &[Worker], expected: &str) {
    check_question(workers, &question(), expected);
}

#[track_caller]
fn check_question(workers: &[Worker], question: &Question, expected: &str) {
    let found = match core(workers, NOW).route(question, NOW) {
        Ok(Route { decode, prefill: Some(prefill), .. }) => {
            format!("{}<-{}", decode.id, prefill.id)
        }
        Ok(Route { decode, .. }) => decode.id.to_string(),
        Err(reason) => format!("{reason:?}"),
    };
    assert_eq!(found, expected);
}

#[test]
fn a_long_new_prompt_goes_to_a_prefill_worker() {
    check_route(&[decode("d"), prefill("p")], "d<-p");
    check_route(&[Worker { running: 9, ..decode("d") }, prefill("p")], "d<-p");
}

#[test]
fn a_short_prompt_is_not_worth_a_handoff() {
    let now = NOW;
    let short = Question { prompt_tokens: 20, ..question() };
    let route = |workers: &[Worker]| core(workers, now).route(&short, now).unwrap();
    assert_eq!(route(&[decode("d"), prefill("p")]).prefill, None);
    let busy = Worker { running: 9, ..decode("d") };
    assert!(route(&[busy, prefill("p")]).prefill.is_some(), "nine streams would wait");
}

#[test]
fn a_decision_explains_itself() {
    let now = NOW;
    let route = core(&[decode("d"), prefill("p")], now).route(&question(), now).unwrap();
    let explained = route.to_string();
    assert!(explained.starts_with("decode=d;prefill=p;cached_blocks=0;ttft_us="), "{explained}");
    assert!(explained.contains(";otherwise=(decode=d;cached_blocks=0;ttft_us="), "{explained}");
}

#[test]
fn without_prefill_workers_the_decode_worker_computes() {
    check_route(&[decode("d")], "d");
}

#[test]
fn what_the_decode_worker_has_seen_stays_there() {
    let seen = Worker { cached_blocks: 90, ..decode("d") };
    check_route(&[seen.clone(), prefill("p")], "d");
    check_route(&[seen, Worker { cached_blocks: 99, ..prefill("p") }], "d<-p");
}

#[test]
fn prefixes_attract_and_queues_repel() {
    let seen = Worker { cached_blocks: 80, ..prefill("q") };
    check_route(&[decode("d"), prefill("p"), seen.clone()], "d<-q");
    let busy = Worker { waiting_tokens: 50_000, ..seen };
    check_route(&[decode("d"), prefill("p"), busy], "d<-p");
}

#[test]
fn faster_workers_are_preferred() {
    let fast = Worker { us_per_token: 10.0, ..prefill("q") };
    check_route(&[decode("d"), prefill("p"), fast], "d<-q");
}

#[test]
fn a_worker_that_was_slow_in_few_steps_is_tried_again() {
    let slow = Worker { us_per_token: 150.0, ..prefill("p") };
    check_route(&[decode("d"), slow.clone()], "d");
    check_route(&[decode("d"), Worker { steps: 2, ..slow }], "d<-p");
}

#[test]
fn streams_spread_over_decode_workers() {
    check_route(&[Worker { running: 5, ..decode("d") }, decode("e"), prefill("p")], "e<-p");
    let full = Worker { free_blocks: 3, ..decode("d") };
    check_route(&[full, Worker { running: 5, ..decode("e") }, prefill("p")], "e<-p");
}

#[test]
fn pairs_share_their_numerics_id_and_model() {
    let other = Worker { numerics_id: "other", ..prefill("p") };
    check_route(&[decode("d"), other], "d");
    let other_model = Worker { model: "other", ..decode("a") };
    check_route(&[other_model, decode("d"), prefill("p")], "d<-p");
}

#[test]
fn silent_workers_are_passed_over_unless_all_are_silent() {
    let silent = Worker { silent: true, ..decode("d") };
    check_route(&[silent.clone(), Worker { running: 50, ..decode("e") }], "e");
    check_route(&[silent], "d");
}

#[test]
fn a_dispatch_counts_until_it_is_reported() {
    let now = NOW;
    let mut core = core(&[decode("d"), prefill("p"), prefill("q")], now);
    let chosen = |core: &mut Core| core.route(&question(), now).unwrap().prefill.unwrap();
    let (first, second) = (chosen(&mut core), chosen(&mut core));
    assert_eq!((first.id.as_str(), second.id.as_str()), ("p", "q"));
    let queue_us = |core: &mut Core, at| gauge(core, &first).queue_us(at);
    assert_eq!(queue_us(&mut core, now), 164_000.0);
    assert_eq!(queue_us(&mut core, now + 165_000), 0.0, "164 were predicted");
    let report = v1::LoadReport { worker_id: "p".into(), ..Default::default() };
    assert_eq!(core.report(report, now + 1_000_000), Sync::Kept);
    assert_eq!(queue_us(&mut core, now + 1_000_000), 0.0);
}

#[test]
fn nonsense_from_a_worker_neither_panics_nor_attracts() {
    let nonsense = [f32::NAN, f32::INFINITY, -1.0, f32::MAX];
    for us in nonsense {
        let mut core = core(&[decode("d"), decode("a")], NOW);
        let load = v1::LoadReport {
            worker_id: "a".into(),
            waiting_prompt_tokens: u64::MAX,
            sequence_tokens: u64::MAX,
            running_sequences: u32::MAX,
            free_blocks: u32::MAX,
            cached_blocks: u32::MAX,
            latency: Some(LatencyModel { prefill_token_us: us, ..Default::default() }),
            kv_sequence: 1,
            ..Default::default()
        };
        assert_eq!(core.report(load, NOW), Sync::Kept);
        for _ in 0..3 {
            assert_eq!(core.route(&question(), NOW).unwrap().decode.id.as_str(), "d", "{us}");
        }
    }
}

#[test]
fn excluded_lives_are_never_chosen() {
    let silent = Worker { silent: true, ..decode("e") };
    let other = Worker { numerics_id: "other", ..decode("o") };
    let busy = Worker { running: 9, us_per_token: 110.0, ..prefill("q") };
    let workers = [decode("d"), silent, other, prefill("p"), busy];
    let table: [(&[&str], &str); 8] = [
        (&[], "d<-p"),
        (&["p", "unknown"], "d<-q"),
        (&["p", "q"], "d"),
        (&["d"], "o"),
        (&["d", "o"], "p"),
        (&["d", "o", "p", "q"], "e"),
        (&["d", "o", "p", "q", "e"], "AllExcluded"),
        (&["d", "o", "p", "q", "e", "unknown"], "AllExcluded"),
    ];
    for (names, expected) in table {
        let excluded = names.iter().map(|name| WorkerLife::new(name, 0)).collect();
        check_question(&workers, &Question { excluded, ..question() }, expected);
    }
    let other_life = Question { excluded: vec![WorkerLife::new("d", 7)], ..question() };
    check_question(&[decode("d")], &other_life, "d");
}

#[test]
fn suspected_workers_are_passed_over_unless_all_are() {
    let suspected = Worker { suspected: true, ..decode("d") };
    let silent = Worker { silent: true, ..decode("e") };
    let busy = Worker { running: 50, ..decode("f") };
    check_route(&[suspected.clone(), silent.clone(), busy], "f");
    check_route(&[suspected.clone(), silent], "e");
    check_route(std::slice::from_ref(&suspected), "d");
    check_route(&[decode("e"), Worker { suspected: true, ..prefill("p") }], "e");
    let excluded = vec![WorkerLife::new("d", 0)];
    check_question(&[suspected], &Question { excluded, ..question() }, "AllExcluded");
}

#[test]
fn a_suspicion_ends_after_a_while() {
    let mut core = core(&[Worker { suspected: true, ..decode("d") }, decode("e")], NOW);
    let mut decode_at = |now| {
        for worker in [decode("d"), decode("e")] {
            let _kept = core.report(report(&worker), now);
        }
        core.route(&question(), now).unwrap().decode.id.to_string()
    };
    assert_eq!(decode_at(NOW + 4_999_999), "e");
    assert_eq!(decode_at(NOW + 5_000_000), "d");
    core.suspect(&WorkerLife::new("d", 1), NOW);
    core.suspect(&WorkerLife::new("unknown", 0), NOW);
    assert_eq!(core.workers().count(), 2, "other lives change nothing");
}

#[test]
fn draining_workers_are_known_and_never_chosen() {
    let draining = Worker { draining: true, cached_blocks: 99, ..decode("d") };
    check_route(&[draining.clone(), Worker { suspected: true, ..decode("e") }], "e");
    check_route(&[draining.clone(), Worker { draining: true, ..prefill("p") }], "AllDrain");
    check_route(&[decode("d"), Worker { draining: true, ..prefill("p") }], "d");

    let mut core = core(&[Worker { cached_blocks: 99, ..decode("d") }, decode("e")], NOW);
    let decode_now = |core: &mut Core| core.route(&question(), NOW).unwrap().decode.id.to_string();
    assert_eq!(decode_now(&mut core), "d");
    core.register(registration(&draining), NOW);
    assert_eq!(decode_now(&mut core), "e");
    let life = WorkerLife::new("d", 0);
    assert_eq!(core.cached_blocks(&life).map(HashSet::len), Some(99), "its index is kept");
    core.register(registration(&decode("d")), NOW);
    assert_eq!(decode_now(&mut core), "d", "it stays after all");
}

#[test]
fn a_newer_life_replaces_older_ones() {
    let mut core = core(&[Worker { cached_blocks: 9, ..decode("d") }, decode("e")], NOW);
    let mut register = |incarnation| {
        core.register(v1::WorkerRegistration { incarnation, ..registration(&decode("d")) }, NOW);
        let lives = core.workers().map(|life| (life.id.to_string(), life.incarnation.0));
        lives.collect::<Vec<_>>()
    };
    let known = |incarnation| [("d".to_string(), incarnation), ("e".to_string(), 0)];
    assert_eq!(register(5), known(5));
    assert_eq!(register(4), known(5), "an older one comes late");
    assert_eq!(register(0), known(5));
    assert_eq!(register(u64::MAX), known(u64::MAX));
    assert_eq!(core.cached_blocks(&WorkerLife::new("d", u64::MAX)).map(HashSet::len), Some(0));
    core.remove(&WorkerLife::new("d", 5));
    assert_eq!(core.workers().count(), 2, "the end of an older life is no news");
}

#[test]
fn prefill_workers_own_requests_where_no_decode_worker_can() {
    let silent = Worker { silent: true, ..decode("d") };
    let busy = Worker { running: 9, ..prefill("q") };
    check_route(&[prefill("p")], "p");
    check_route(&[silent.clone(), prefill("p"), busy.clone()], "p");
    check_route(&[silent, Worker { silent: true, ..prefill("p") }], "d<-p");
    check_route(&[Worker { draining: true, ..decode("d") }, busy], "q");
    let other = Worker { numerics_id: "other", running: 50, ..decode("o") };
    check_route(&[prefill("p"), other], "o");
}

#[test]
fn prefill_workers_to_which_no_decode_worker_is_alike_are_counted() {
    let other = Worker { numerics_id: "other", ..prefill("p") };
    let mut core = core(&[other, prefill("q"), decode("d")], NOW);
    assert_eq!(core.unpaired_prefill_workers(), 1);
    core.register(registration(&Worker { numerics_id: "other", ..decode("e") }), NOW);
    assert_eq!(core.unpaired_prefill_workers(), 0);
    core.remove(&WorkerLife::new("d", 0));
    assert_eq!(core.unpaired_prefill_workers(), 1);
}

#[test]
fn a_continued_answer_keeps_its_numerics_id() {
    let prefer = |id: &str| Question { preferred_numerics_id: id.into(), ..question() };
    let other = Worker { numerics_id: "other", running: 50, ..decode("o") };
    let all = [decode("d"), other.clone(), prefill("p")];
    check_question(&all, &prefer("n"), "d<-p");
    check_question(&all, &prefer("other"), "o");
    check_question(&all, &prefer("unknown"), "d<-p");
    let silent = Worker { silent: true, ..other.clone() };
    check_question(&[decode("d"), silent], &prefer("other"), "o");
    check_question(
        &[decode("d"), Worker { prefill: true, ..other.clone() }],
        &prefer("other"),
        "o",
    );
    let suspected = Worker { suspected: true, ..other.clone() };
    check_question(&[decode("d"), suspected.clone()], &prefer("other"), "d");
    check_question(&[Worker { suspected: true, ..decode("d") }, suspected], &prefer("other"), "o");
    check_question(&[decode("d"), Worker { draining: true, ..other }], &prefer("other"), "d");
}

#[test]
fn what_other_routers_gave_away_counts_until_it_is_reported() {
    let mut core = core(&[decode("d"), decode("e")], NOW);
    let told = |prefill_us, incarnation| v1::Dispatch {
        worker_id: "d".into(),
        worker_incarnation: incarnation,
        prefill_us,
        prompt_tokens: 1600,
    };
    let busy = |core: &mut Core, now| {
        let gauge = gauge(core, &WorkerLife::new("d", 0));
        (gauge.queue_us(now), gauge.streams, gauge.stream_tokens)
    };
    core.dispatched_elsewhere(&[told(5_000.0, 0), told(7_000.0, 9), told(0.0, 0)], NOW);
    assert_eq!(busy(&mut core, NOW), (5_000.0, 2.0, 3_200.0));
    assert_eq!(core.route(&question(), NOW).unwrap().decode.id.as_str(), "e");
    let _kept = core.report(report(&decode("d")), NOW + 100);
    assert_eq!(busy(&mut core, NOW + 100), (0.0, 0.0, 0.0));

    let nonsense = [f32::NAN, f32::INFINITY, -1.0, f32::MAX].map(|us| told(us, 0));
    for _ in 0..1_000 {
        core.dispatched_elsewhere(&nonsense, NOW);
    }
    assert_eq!(busy(&mut core, NOW).1, 1024.0, "what is remembered is bounded");
}

#[test]
fn no_worker_is_an_answer_too() {
    let now = NOW;
    assert_eq!(core(&[], now).route(&question(), now), Err(NoRoute::NoWorker));
    check_route(&[Worker { model: "other", ..decode("d") }], "NoWorker");
    check_route(&[Worker { numerics_id: "unknown", ..decode("d") }], "NoWorker");
}
