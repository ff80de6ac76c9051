//! What a device makes of a few tokens: a fingerprint of its arithmetic, for the numerics id.
//!
//! How sums are rounded depends on more than can be named: the card, the version of its libraries,
//! the sizes of a CPU's caches. So the id has what came out. Where shapes are fixed, the probe also
//! sees whether that is enough on this device.

use kv_transfer::{HostMemory, KvLayout};

use super::decoder::CandleDecoder;
use super::shapes::Numerics;
use crate::model::Span;

const BLOCK_SIZE: usize = 16;
/// More than one piece of anything, and no multiple of one.
const PROMPT_TOKENS: usize = 150;
/// Where the prompt is cut to be computed again, beside other tokens.
const CUTS: [usize; 5] = [0, 1, 17, 64, 149];

/// Computes made-up tokens, and returns a fingerprint of their logits. Errors: the device fails, or
/// its results depend on the batch although shapes are fixed: a sentence.
pub fn run(decoder: &CandleDecoder, numerics: Numerics) -> Result<String, String> {
    let probe = Probe::new(decoder)?;
    let whole = probe.compute(&[0], false)?;
    if numerics == Numerics::Fixed && probe.compute(&CUTS, true)? != whole {
        return Err("its results depend on the batch, although all shapes are fixed".to_string());
    }
    Ok(blake3::hash(&whole).to_hex()[..8].to_string())
}

struct Probe<'a> {
    decoder: &'a CandleDecoder,
    layout: KvLayout,
    memory: HostMemory,
    tokens: Vec<u32>,
}

impl<'a> Probe<'a> {
    fn new(decoder: &'a CandleDecoder) -> Result<Self, String> {
        let layout = decoder.kv_layout("", BLOCK_SIZE);
        // For the tokens, and for those beside them.
        let blocks = 2 * layout.blocks_for(PROMPT_TOKENS);
        let memory = HostMemory::new(blocks, layout.block_bytes());
        let memory = memory.map_err(|error| format!("no memory for a probe: {error}"))?;
        let vocabulary = decoder.vocabulary_size();
        let tokens = (0..PROMPT_TOKENS).map(|at| ((at * at * 7 + at) % vocabulary) as u32);
        Ok(Self { decoder, layout, memory, tokens: tokens.collect() })
    }

    /// The bytes of the logits after each token, computed in chunks that begin at `cuts`. With company, each chunk
    /// is computed behind an equal one of another sequence.
    fn compute(&self, cuts: &[usize], has_company: bool) -> Result<Vec<u8>, String> {
        let blocks: Vec<u32> = (0..self.memory.blocks() as u32).collect();
        let (blocks, others) = blocks.split_at(blocks.len() / 2);
        let ends = cuts.iter().skip(1).copied().chain([PROMPT_TOKENS]);
        let mut logits = Vec::new();
        for (start, end) in cuts.iter().copied().zip(ends) {
            let tokens = &self.tokens[start..end];
            let span = Span { tokens, start, blocks, logits: tokens.len() };
            let company = Span { tokens, start, blocks: others, logits: 0 };
            let spans = if has_company { vec![company, span] } else { vec![span] };
            let computed = self.decoder.forward(&spans, &self.layout, &self.memory);
            let computed = computed.map_err(|error| error.to_string())?;
            logits.extend(computed.iter().flat_map(|logit| logit.to_le_bytes()));
        }
        Ok(logits)
    }
}
