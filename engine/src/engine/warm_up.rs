//! Made-up steps before the first true one.

use std::time::Duration;

use protocol::v1::Sampling;

use super::{Engine, StepOutput, attended};
use crate::runner::{Choice, Context, RunnerError, Span};

/// Prompt lengths and the number of streams of the steps by which an engine warms up.
const WARM_UP_PROMPTS: [usize; 2] = [16, 128];
const WARM_UP_STREAMS: usize = 8;
const WARM_UP_TIMES: usize = 4;

impl Engine {
    /// Computes a few made-up steps: memory is touched for the first time, and the caller learns how
    /// long steps take before the first request comes. Before anything else: it writes to blocks
    /// that nobody has yet, and leaves nothing that could be found. Errors: the device failed.
    pub fn warm_up(&mut self) -> Result<Vec<StepOutput>, RunnerError> {
        let block_size = self.config.block_size;
        let step_tokens =
            self.config.max_num_batched_tokens.min(self.context_tokens.saturating_sub(1));
        let mut outputs = Vec::new();
        for prompt_tokens in WARM_UP_PROMPTS.into_iter().filter(|tokens| *tokens <= step_tokens) {
            outputs.push(self.warm_up_step(1, prompt_tokens, 0)?);
        }
        let decoding = WARM_UP_STREAMS.min(self.config.max_num_seqs).min(self.config.kv_blocks);
        for streams in [1, decoding] {
            outputs.push(self.warm_up_step(streams, 1, (block_size - 1).min(1))?);
        }
        Ok(outputs)
    }

    /// A step of so many sequences with `count` tokens each from `start` on, made several times: the
    /// first time is a cold one, and another may be disturbed.
    fn warm_up_step(
        &mut self,
        sequences: usize,
        count: usize,
        start: usize,
    ) -> Result<StepOutput, RunnerError> {
        let Self { runner, layout, memory, .. } = self;
        let (tokens, blocks_each) = (vec![0; count], layout.blocks_for(start + count));
        let blocks: Vec<u32> = (0..(sequences * blocks_each) as u32).collect();
        let sampling = Sampling::default();
        let span = |blocks| {
            let context = Context {
                tokens: &tokens,
                prompt_tokens: count,
                stop_token_ids: &[],
                min_tokens: 0,
            };
            let choice = Some(Choice { sampling: &sampling, context, drafts: 0, grammar: None });
            Span { tokens: &tokens, start, blocks, choice, prompt_report: None }
        };
        let mut spans: Vec<Span<'_>> = blocks.chunks(blocks_each).map(span).collect();
        let mut took = Duration::MAX;
        for _ in 0..WARM_UP_TIMES {
            took = took.min(runner.run(&mut spans, layout, memory)?.took);
        }
        let attended = attended(start, count);
        Ok(match count {
            1 => StepOutput {
                decode_sequences: sequences,
                decode_attended: sequences * attended,
                took,
                ..Default::default()
            },
            _ => StepOutput {
                prefill_tokens: count,
                prefill_attended: attended,
                took,
                ..Default::default()
            },
        })
    }
}
