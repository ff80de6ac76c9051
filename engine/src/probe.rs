//! What a device makes of a few tokens: a fingerprint of its arithmetic, for the numerics id.
//!
//! How sums are rounded depends on more than can be named: the card, the version of its libraries,
//! the sizes of a CPU's caches. So the id has what came out. Where shapes are fixed, the probe also
//! sees whether that is enough on this device.

use kv_transfer::KvLayout;

use crate::Numerics;
use crate::model::Span;

/// More than one piece of anything, and no multiple of one.
const PROMPT_TOKENS: usize = 150;
/// Where the prompt is cut to be computed again, beside other tokens.
const CUTS: [usize; 5] = [0, 1, 17, 64, 149];

/// Made-up tokens.
pub struct Probe {
    /// Of the blocks that they are computed in.
    pub layout: KvLayout,
    tokens: Vec<u32>,
}

impl Probe {
    /// For who may choose.
    pub const BLOCK_SIZE: usize = 16;

    /// Tokens below `vocabulary`.
    pub fn new(layout: KvLayout, vocabulary: usize) -> Self {
        let tokens = (0..PROMPT_TOKENS).map(|at| ((at * at * 7 + at) % vocabulary) as u32);
        Self { layout, tokens: tokens.collect() }
    }

    /// How many blocks are needed: for the tokens, and for those beside them.
    pub fn blocks(&self) -> usize {
        2 * self.layout.blocks_for(PROMPT_TOKENS)
    }

    /// Computes the tokens by `forward`, which returns the wanted logits, and returns a fingerprint of
    /// them. Errors: the device fails, or its results depend on the batch although shapes are fixed: a
    /// sentence.
    pub fn run(
        &self,
        numerics: Numerics,
        mut forward: impl FnMut(&[Span<'_>], &KvLayout) -> Result<Vec<f32>, String>,
    ) -> Result<String, String> {
        let whole = self.compute(&[0], false, &mut forward)?;
        if numerics == Numerics::Fixed && self.compute(&CUTS, true, &mut forward)? != whole {
            return Err(
                "its results depend on the batch, although all shapes are fixed".to_string()
            );
        }
        Ok(blake3::hash(&whole).to_hex()[..8].to_string())
    }

    /// The bytes of the logits after each token, computed in chunks that begin at `cuts`. With company,
    /// each chunk is computed behind an equal one of another sequence.
    fn compute(
        &self,
        cuts: &[usize],
        has_company: bool,
        forward: &mut impl FnMut(&[Span<'_>], &KvLayout) -> Result<Vec<f32>, String>,
    ) -> Result<Vec<u8>, String> {
        let blocks: Vec<u32> = (0..self.blocks() as u32).collect();
        let (blocks, others) = blocks.split_at(blocks.len() / 2);
        let ends = cuts.iter().skip(1).copied().chain([PROMPT_TOKENS]);
        let mut logits = Vec::new();
        for (start, end) in cuts.iter().copied().zip(ends) {
            let tokens = &self.tokens[start..end];
            let span = Span { tokens, start, blocks, logits: tokens.len() };
            let company = Span { tokens, start, blocks: others, logits: 0 };
            let spans = if has_company { vec![company, span] } else { vec![span] };
            let computed = forward(&spans, &self.layout)?;
            logits.extend(computed.iter().flat_map(|logit| logit.to_le_bytes()));
        }
        Ok(logits)
    }
}
