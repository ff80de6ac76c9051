//! Runs a schedule, and checks it.

use engine::{Engine, EngineConfig, SequenceOutput};
use protocol::v1::LatencyModel;

use crate::engine;
use crate::plan::{ARRIVALS_STEPS, HOLD_STEPS_MAX, Plan, Planned, Purpose};

/// What happened, so that a plan that no longer tries anything does not go unnoticed.
#[derive(Debug, Default)]
pub struct Totals {
    sequences: usize,
    preemptions: usize,
    guesses_accepted: u64,
    guesses_failed: u64,
    held: usize,
    reserved: usize,
    /// Steps of a schedule, and its bound: the one that came closest.
    closest: (usize, usize),
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.preemptions += other.preemptions;
        self.guesses_accepted += other.guesses_accepted;
        self.guesses_failed += other.guesses_failed;
        self.held += other.held;
        self.reserved += other.reserved;
        let share = |(steps, bound): (usize, usize)| steps as f64 / bound.max(1) as f64;
        if share(other.closest) > share(self.closest) {
            self.closest = other.closest;
        }
    }

    /// Far less of each than there is.
    pub fn assert_enough(&self) {
        let Self { preemptions, guesses_accepted, guesses_failed, held, reserved, .. } = self;
        let guesses = (*guesses_accepted).min(*guesses_failed) as usize;
        for count in [preemptions, &guesses, held, reserved] {
            assert!(*count > 1000, "{self:?}");
        }
    }
}

/// Where a sequence is.
#[derive(Clone, Debug, Default)]
struct State {
    tokens: Vec<u32>,
    /// When it is let go of, or its blocks are filled.
    acts_at: Option<usize>,
    has_come: bool,
    has_ended: bool,
}

struct Run<'a> {
    plan: &'a Plan,
    engine: Engine,
    states: Vec<State>,
    totals: Totals,
}

/// Runs all of it. Errors: what was wrong.
pub fn run(plan: &Plan) -> Result<Totals, String> {
    let mut run = Run {
        plan,
        engine: engine(plan.config),
        states: vec![State::default(); plan.sequences.len()],
        totals: Totals { sequences: plan.sequences.len(), ..Default::default() },
    };
    let bounds: Vec<usize> = plan.sequences.iter().map(|planned| bound(plan, planned)).collect();
    let mut step = 0;
    while run.states.iter().any(|state| !state.has_ended) {
        run.act(step);
        run.step(step)?;
        step += 1;
        let mut unfinished = run.states.iter().zip(&bounds).filter(|(state, _)| !state.has_ended);
        if unfinished.any(|(_, bound)| step > *bound) {
            let bound = bounds.iter().max().unwrap();
            return Err(format!("not done after {step} of {bound} steps: {:?}", run.engine.load()));
        }
    }
    run.totals.closest = (step, *bounds.iter().max().unwrap());
    run.check_end()?;
    Ok(run.totals)
}

/// By when a sequence ends: once all have come, the best rank is served until it ends, then the next.
/// So it takes the steps that it and each one before it take by themselves, and where blocks are held
/// for readers or set aside, the time for which they are.
fn bound(plan: &Plan, of: &Planned) -> usize {
    let rank = |planned: &Planned| (planned.request.priority, planned.comes_at, planned.request.id);
    let is_before = |other: &&Planned| match other.purpose {
        Purpose::Generate => rank(other) <= rank(of),
        // Nobody takes these blocks, and what was set aside arrives when it is filled.
        _ => true,
    };
    let before = plan.sequences.iter().filter(is_before);
    ARRIVALS_STEPS + before.map(|planned| steps_alone(plan.config, planned)).sum::<usize>()
}

fn steps_alone(config: EngineConfig, planned: &Planned) -> usize {
    let EngineConfig { max_num_batched_tokens, max_num_seqs, .. } = config;
    // What a prompt has of each step at least: half of a quarter; see the scheduler.
    let chunk = (max_num_batched_tokens / 8).max(1);
    // In steps of few tokens it is the prompts' turn every second time.
    let turns = if max_num_batched_tokens < 4 { 2 } else { 1 };
    // A stream's turn comes after so many steps.
    let streams = max_num_seqs.div_ceil((max_num_batched_tokens * 3 / 4).max(1));
    let prompt = planned.request.prompt.len().div_ceil(chunk) * turns;
    let output = planned.request.stopping.max_tokens as usize * streams * turns;
    let held = match planned.purpose {
        Purpose::Generate => 0,
        _ => HOLD_STEPS_MAX,
    };
    prompt + output + held + 1
}

impl Run<'_> {
    /// What others do to sequences before a step.
    fn act(&mut self, step: usize) {
        let plan = self.plan;
        for (index, planned) in plan.sequences.iter().enumerate() {
            let id = planned.request.id;
            if planned.comes_at == step {
                self.come(index, step);
            }
            let cancelled = planned.cancelled_after.map(|after| planned.comes_at + after);
            if cancelled == Some(step) && !self.states[index].has_ended {
                self.engine.release(id);
                self.states[index].has_ended = true;
            }
            let state = &mut self.states[index];
            if state.has_ended || state.acts_at.is_none_or(|at| at > step) {
                continue;
            }
            state.acts_at = None;
            match planned.purpose {
                Purpose::Reserve { is_filled: true, .. } => {
                    // The token it would have had. What is not in the blocks shows in the next one.
                    let first = alone(planned, plan.config)[0];
                    state.tokens.push(first);
                    state.has_ended = self.engine.compute_reserved(id, Some(first));
                }
                Purpose::Reserve { .. } => {
                    state.has_ended = self.engine.compute_reserved(id, None);
                }
                _ => {
                    self.engine.release(id);
                    state.has_ended = true;
                }
            }
        }
    }

    fn come(&mut self, index: usize, step: usize) {
        let planned = &self.plan.sequences[index];
        let state = &mut self.states[index];
        state.has_come = true;
        match planned.purpose {
            Purpose::Prefill { .. } => self.engine.prefill(planned.request.clone()).unwrap(),
            Purpose::Reserve { steps, .. }
                if self.engine.reserve(planned.request.clone()).is_ok() =>
            {
                state.acts_at = Some(step + steps);
                self.totals.reserved += 1;
            }
            _ => self.engine.generate(planned.request.clone()).unwrap(),
        }
    }

    fn step(&mut self, step: usize) -> Result<(), String> {
        let output = self.engine.step().unwrap();
        self.engine.learn_latency(LatencyModel {
            step_us: 5.0,
            prefill_token_us: 1.0,
            ..Default::default()
        });
        let load = self.engine.load();
        self.totals.preemptions = load.preemptions as usize;
        self.totals.guesses_accepted += output.guesses.accepted;
        self.totals.guesses_failed += output.guesses.computed - output.guesses.accepted;
        let acts = self.states.iter().any(|state| state.acts_at.is_some());
        if output.is_idle() && load.waiting > 0 && !acts {
            return Err(format!("nothing is computed in step {step}, and nobody holds anything"));
        }
        for news in output.sequences {
            self.take(news, step);
        }
        Ok(())
    }

    fn take(&mut self, news: SequenceOutput, step: usize) {
        let index = news.id.0 as usize;
        let state = &mut self.states[index];
        state.tokens.extend(news.tokens.iter().map(|token| token.id));
        match self.plan.sequences[index].purpose {
            Purpose::Prefill { held_steps } if !news.tokens.is_empty() => {
                state.acts_at = Some(step + 1 + held_steps);
                self.totals.held += 1;
            }
            Purpose::Prefill { .. } => {}
            _ => state.has_ended = news.finish.is_some(),
        }
    }

    /// All blocks are back, and all tokens those of each sequence alone.
    fn check_end(&self) -> Result<(), String> {
        let load = self.engine.load();
        let blocks = load.blocks.free + load.blocks.cached;
        if (load.running, load.waiting, blocks) != (0, 0, self.plan.config.kv_blocks) {
            return Err(format!("something is left: {load:?}"));
        }
        for (planned, state) in self.plan.sequences.iter().zip(&self.states) {
            let mut expected = alone(planned, self.plan.config);
            let is_whole = planned.cancelled_after.is_none();
            if !is_whole || matches!(planned.purpose, Purpose::Prefill { .. }) {
                expected.truncate(state.tokens.len());
            }
            if state.tokens != expected {
                let found = &state.tokens;
                return Err(format!("{:?}: {found:?} instead of {expected:?}", planned.request.id));
            }
        }
        Ok(())
    }
}

/// The tokens of a sequence without company, in a pool as large: texts end where it is full.
fn alone(planned: &Planned, config: EngineConfig) -> Vec<u32> {
    let mut engine = engine(EngineConfig {
        max_num_batched_tokens: 512,
        speculative_tokens: 0,
        step_target: None,
        ..config
    });
    engine.generate(planned.request.clone()).unwrap();
    let mut tokens = Vec::new();
    while engine.load().running + engine.load().waiting > 0 {
        let news = engine.step().unwrap().sequences;
        tokens.extend(news.iter().flat_map(|news| &news.tokens).map(|token| token.id));
    }
    tokens
}
