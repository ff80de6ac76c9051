//! Runs a scenario and compares each request's answer with its answer alone.

use engine::{Engine, Guesses, SequenceId, SequenceRequest};
use protocol::v1::{LatencyModel, Token};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::bench::{Answer, Bench};
use crate::coverage::{Coverage, Event};
use crate::handoff::Handoff;
use crate::scenario::{Scenario, Sizes};

/// A scenario that takes longer is stuck.
const TICKS_MAX: usize = 100_000;
/// What the local engine is told of how long its steps take: steps of few tokens where it has a target.
const LATENCY: LatencyModel = LatencyModel {
    step_us: 40.0,
    prefill_token_us: 2.0,
    prefill_attended_us: 0.01,
    sequence_us: 1.0,
    attended_us: 0.01,
    prefill_steps: 1,
    decode_steps: 1,
};
/// How likely an engine takes a step in a tick, so that two engines do not keep in step.
const STEP_PROBABILITY: f64 = 0.8;

/// An answer that is not what it must be.
#[derive(Debug)]
pub struct Mismatch {
    /// The request's index.
    pub request: usize,
    pub problem: String,
}

/// Runs all of a scenario. Tokens, logprobs and ends must be those of each request alone, and no
/// engine may hold a block when all have ended.
pub fn run_scenario(
    bench: &Bench,
    scenario: &Scenario,
    coverage: &mut Coverage,
) -> Result<(), Mismatch> {
    let mut run = Run::new(bench, scenario, coverage);
    for tick in 0.. {
        let Some(request) = run.requests.iter().position(|request| !request.ended) else { break };
        if tick == TICKS_MAX {
            return Err(Mismatch { request, problem: "it never ends".to_string() });
        }
        run.tick(tick);
    }
    assert_empty(&run.local, scenario.local);
    assert_empty(&run.remote, scenario.remote);
    for (request, found) in run.requests.iter().enumerate() {
        let alone = bench.alone(scenario.alone, &scenario.arrivals[request].request);
        if let Some(problem) = found.difference(&alone) {
            return Err(Mismatch { request, problem });
        }
    }
    Ok(())
}

fn assert_empty(engine: &Engine, sizes: Sizes) {
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.blocks.used), (0, 0, 0), "{load:?}, {sizes:?}");
    assert_eq!(load.blocks.free + load.blocks.cached, sizes.config.kv_blocks);
}

/// Where a request is.
#[derive(Default)]
struct Progress {
    answer: Answer,
    /// Tokens of the answer when it last migrated.
    given_tokens: usize,
    handoff: Option<Handoff>,
    cancelled: bool,
    ended: bool,
}

impl Progress {
    /// What is wrong with its answer, if anything.
    fn difference(&self, alone: &Answer) -> Option<String> {
        let (found, expected) = (&self.answer.tokens, &alone.tokens);
        for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
            if bits(found) != bits(expected) {
                return Some(format!("output {position} is {found:?} instead of {expected:?}"));
            }
        }
        let reports = [&self.answer.prompt_report, &alone.prompt_report];
        let [found_report, expected_report] =
            reports.map(|report| report.iter().map(bits).collect::<Vec<_>>());
        // One that migrated before its first token came reports once all the same.
        if found_report != expected_report && !(self.cancelled && found_report.is_empty()) {
            return Some(format!("reports {found_report:?} instead of {expected_report:?}"));
        }
        if found.len() > expected.len() || (!self.cancelled && found.len() < expected.len()) {
            return Some(format!("{} tokens instead of {}", found.len(), expected.len()));
        }
        let (finish, expected) = (self.answer.finish, alone.finish);
        (finish.is_some() && finish != expected)
            .then(|| format!("it ends by {finish:?} instead of {expected:?}"))
    }
}

/// A token with its logprobs, of which no bit may differ.
fn bits(token: &Token) -> (u32, Option<u32>, Vec<(u32, u32)>) {
    let top = token.top_logprobs.iter().map(|top| (top.id, top.logprob.to_bits()));
    (token.id, token.logprob.map(f32::to_bits), top.collect())
}

struct Run<'a> {
    scenario: &'a Scenario,
    coverage: &'a mut Coverage,
    rng: StdRng,
    local: Engine,
    remote: Engine,
    requests: Vec<Progress>,
}

impl<'a> Run<'a> {
    fn new(bench: &Bench, scenario: &'a Scenario, coverage: &'a mut Coverage) -> Self {
        let (mut local, mut remote) = (bench.engine(scenario.local), bench.engine(scenario.remote));
        let [earlier_local, earlier_remote] = &scenario.earlier;
        warm(&mut local, earlier_local);
        warm(&mut remote, earlier_remote);
        let requests = scenario.arrivals.iter().map(|_| Progress::default()).collect();
        let rng = StdRng::seed_from_u64(!scenario.seed);
        Self { scenario, coverage, rng, local, remote, requests }
    }

    fn tick(&mut self, tick: usize) {
        for index in 0..self.requests.len() {
            let arrival = &self.scenario.arrivals[index];
            if arrival.tick == tick {
                self.begin(index);
            }
            if arrival.migrates_at == Some(tick) && !self.requests[index].ended {
                self.coverage.add(Event::Migration, 1);
                self.migrate(index);
            }
            if arrival.cancelled_at == Some(tick) && !self.requests[index].ended {
                self.requests[index].cancelled = true;
                self.coverage.add(Event::Cancellation, 1);
                self.end(index);
            }
        }
        if self.rng.random_bool(STEP_PROBABILITY) {
            self.step_local();
        }
        if self.rng.random_bool(STEP_PROBABILITY) {
            self.step_remote();
        }
        for index in 0..self.requests.len() {
            self.transfer(index);
        }
    }

    /// Reserves blocks and has the prompt computed remotely, or leaves it all to the local engine:
    /// where that is planned, and where there is no room, as a decode worker does.
    fn begin(&mut self, index: usize) {
        let arrival = &self.scenario.arrivals[index];
        let tokens = self.requests[index].answer.tokens.iter();
        let generated: Vec<u32> = tokens.map(|token| token.id).collect();
        let request = || SequenceRequest {
            generated: generated.clone(),
            // What was reported with the first token is not asked for again.
            prompt_logprobs: arrival.request.prompt_logprobs.filter(|_| generated.is_empty()),
            ..arrival.request.clone()
        };
        if let Some(plan) = arrival.handoff
            && let Ok(reserved) = self.local.reserve(request())
        {
            self.coverage.add(Event::PrefixHit, usize::from(reserved.cached_blocks > 0));
            self.remote.prefill(request()).unwrap();
            self.requests[index].handoff = Some(Handoff::new(plan, reserved));
        } else {
            self.local.generate(request()).unwrap();
        }
    }

    fn step_local(&mut self) {
        let before = self.local.load().preemptions;
        let output = self.local.step().unwrap();
        let preempted = self.local.load().preemptions - before;
        self.coverage.add(Event::Preemption, preempted as usize);
        let Guesses { computed, accepted } = output.guesses;
        self.coverage.add(Event::GoodGuess, accepted as usize);
        self.coverage.add(Event::BadGuess, (computed - accepted) as usize);
        self.local.learn_latency(LATENCY);
        let batched = output.prefill_tokens + output.decode_sequences;
        let full = batched == self.scenario.local.config.max_num_batched_tokens;
        self.coverage.add(Event::FullStep, usize::from(full));
        self.coverage.add(Event::Company, usize::from(output.sequences.len() > 1));
        for news in output.sequences {
            let index = news.id.0 as usize;
            let hit = news.cached_tokens.is_some_and(|tokens| tokens > 0);
            self.coverage.add(Event::PrefixHit, usize::from(hit));
            let request = &mut self.requests[index];
            self.coverage.add(Event::Draft, news.tokens.len().saturating_sub(1));
            request.ended = news.finish.is_some();
            request.answer.add(news);
        }
    }

    fn step_remote(&mut self) {
        for news in self.remote.step().unwrap().sequences {
            let index = news.id.0 as usize;
            let request = &mut self.requests[index];
            if let Some(handoff) = &mut request.handoff {
                handoff.announce(&news.ready_blocks);
            }
            let has_ended = news.finish.is_some();
            request.answer.add(news);
            if has_ended {
                self.coverage.add(Event::RemoteEnd, 1);
                self.end(index);
            }
        }
    }

    /// Moves a handoff on, if there is one.
    fn transfer(&mut self, index: usize) {
        let Some(mut handoff) = self.requests[index].handoff.take() else { return };
        handoff.copy_some(&self.remote, &mut self.rng);
        let Progress { answer, given_tokens, .. } = &self.requests[index];
        let first_token = answer.tokens.get(*given_tokens).map(|token| token.id);
        let complete = first_token.filter(|_| handoff.is_complete());
        if handoff.fails(complete.is_some()) {
            handoff.spoil();
            drop(handoff);
            let event =
                if first_token.is_some() { Event::LateFailure } else { Event::EarlyFailure };
            self.coverage.add(event, 1);
            self.remote.release(id(index));
            self.requests[index].ended = self.local.compute_reserved(id(index), first_token);
        } else if let Some(first_token) = complete {
            drop(handoff);
            self.coverage.add(Event::Activation, 1);
            self.remote.release(id(index));
            self.requests[index].ended = self.local.activate(id(index), first_token);
        } else {
            self.requests[index].handoff = Some(handoff);
        }
    }

    /// Begins anew with what there is of the answer, as in another engine.
    fn migrate(&mut self, index: usize) {
        let request = &mut self.requests[index];
        request.handoff = None;
        request.given_tokens = request.answer.tokens.len();
        self.local.release(id(index));
        self.remote.release(id(index));
        self.begin(index);
    }

    fn end(&mut self, index: usize) {
        self.requests[index].handoff = None;
        self.requests[index].ended = true;
        self.local.release(id(index));
        self.remote.release(id(index));
    }
}

fn id(index: usize) -> SequenceId {
    SequenceId(index as u64)
}

/// Computes requests, for what they leave in the cache.
fn warm(engine: &mut Engine, earlier: &[SequenceRequest]) {
    for request in earlier {
        engine.generate(request.clone()).unwrap();
    }
    while engine.load().running + engine.load().waiting > 0 {
        assert!(!engine.step().unwrap().is_idle(), "it never ends: {:?}", engine.load());
    }
}
