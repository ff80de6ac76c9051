//! One batch: what the scheduler chose, as the runner wants to see it.

use grammar::GrammarState;

use super::Engine;
use crate::runner::{Choice, Computed, Context, PromptReport, RunnerError, Span};
use crate::schedule::{Scheduled, Sequence};

/// What a sequence lends to a batch.
struct Lent {
    /// Drafts at the end of its tokens.
    drafts: usize,
    grammar: Option<GrammarState>,
    /// Tokens that end it.
    stop_token_ids: Vec<u32>,
}

impl Engine {
    /// Computes what is scheduled; one output per entry, in order.
    pub(super) fn compute(&mut self, scheduled: &[Scheduled]) -> Result<Computed, RunnerError> {
        let Self { runner, scheduler, facts, layout, memory, .. } = self;
        let running = scheduler.running_mut();
        let lend = |Scheduled { index, count }: &Scheduled| {
            Lent::of(&mut running[*index], *count, &facts.eos_token_ids)
        };
        let mut lent: Vec<Lent> = scheduled.iter().map(lend).collect();
        let spans = scheduled.iter().zip(&mut lent);
        let mut spans: Vec<Span<'_>> = spans
            .map(|(scheduled, lent)| span_of(&running[scheduled.index], scheduled.count, lent))
            .collect();
        let computed = runner.run(&mut spans, layout, memory);
        for (Scheduled { index, .. }, lent) in scheduled.iter().zip(lent) {
            lent.give_back(&mut running[*index]);
        }
        computed
    }
}

impl Lent {
    fn of(sequence: &mut Sequence, count: usize, eos: &[u32]) -> Self {
        let drafts = count.saturating_sub(sequence.uncomputed());
        let expected = sequence.drafts[..drafts].to_vec();
        sequence.tokens.extend(expected);
        let stop_token_ids = match sequence.stopping.min_tokens {
            0 => Vec::new(),
            _ => [eos, &sequence.stopping.stop_token_ids].concat(),
        };
        Self { drafts, grammar: sequence.grammar.take(), stop_token_ids }
    }

    fn give_back(self, sequence: &mut Sequence) {
        sequence.tokens.truncate(sequence.tokens.len() - self.drafts);
        sequence.grammar = self.grammar;
    }
}

fn span_of<'a>(sequence: &'a Sequence, count: usize, lent: &'a mut Lent) -> Span<'a> {
    let Sequence { sampling, prompt_tokens, .. } = sequence;
    let (start, end) = (sequence.computed, sequence.computed + count);
    let choice = (end == sequence.tokens.len()).then(|| Choice {
        sampling,
        context: Context {
            tokens: &sequence.tokens,
            prompt_tokens: *prompt_tokens,
            stop_token_ids: &lent.stop_token_ids,
            min_tokens: sequence.stopping.min_tokens as usize,
        },
        drafts: lent.drafts,
        grammar: lent.grammar.as_mut(),
    });
    let reported = start + 1..(end + 1).min(*prompt_tokens);
    let prompt_report = match sequence.prompt_logprobs {
        Some(alternatives) if !reported.is_empty() => {
            Some(PromptReport { next_tokens: &sequence.tokens[reported], alternatives })
        }
        _ => None,
    };
    let tokens = &sequence.tokens[start..end];
    Span { tokens, start, blocks: &sequence.blocks, choice, prompt_report }
}
