//! From logits to what the engine wants to know, on the host.

use std::cell::RefCell;

use super::{Facts, Span, SpanOutput};
use crate::model;
use crate::sampler;

/// What each span gave. `logits` is `[rows, vocabulary_size]` of the rows that the spans asked for, in
/// order, and used as scratch.
pub fn conclude_all(
    spans: &mut [Span<'_>],
    mut logits: &mut [f32],
    facts: &Facts,
) -> Vec<SpanOutput> {
    let mut conclude = |span: &mut Span<'_>| {
        let rows = logits.split_off_mut(..span.logits() * facts.vocabulary_size);
        conclude(span, rows.expect("as many logits as were asked for"), facts)
    };
    spans.iter_mut().map(&mut conclude).collect()
}

/// `rows` is `[span.logits(), vocabulary_size]`, and used as scratch once a row was reported on.
fn conclude(span: &mut Span<'_>, rows: &mut [f32], facts: &Facts) -> SpanOutput {
    let drafts = span.choice.as_ref().map_or(0, |choice| choice.drafts);
    let first_choice = span.logits().saturating_sub(drafts + 1);
    let rows: RefCell<Vec<&mut [f32]>> =
        RefCell::new(rows.chunks_exact_mut(facts.vocabulary_size).collect());
    span.conclude(
        |row, token, alternatives| sampler::report(rows.borrow()[row], token, alternatives),
        |sampling, draft, context, allowed| {
            let row = &mut rows.borrow_mut()[first_choice + draft];
            match allowed {
                None => sampler::sample(row, sampling, context, None),
                // A grammar may refuse what it allowed, and ask again.
                Some(_) => sampler::sample(&mut row.to_vec(), sampling, context, allowed),
            }
        },
    )
}

impl<'a> Span<'a> {
    /// As a decoder wants to see it.
    pub(super) fn for_decoder(&self) -> model::Span<'a> {
        let logits = self.logits();
        model::Span { tokens: self.tokens, start: self.start, blocks: self.blocks, logits }
    }
}
