//! How tokens are chosen on the card: the engine's sampler, for rows whose logits nothing changes
//! before (penalties, biases and grammars are the host's).

use crate::launch::{Argument, Launch, LaunchError, count};

/// As many candidates are ranked on the card.
pub const CANDIDATES_MAX: usize = 1024;
/// What is written for a row that would need more: the host chooses from its logits.
pub const NOT_DECIDED: u32 = u32::MAX;

const SAMPLE_THREADS: u32 = 512;

/// How one row is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSampling {
    /// The engine's random number of the row's seed, choice and position: in `[0, 1)`.
    pub random: f64,
    /// 0 takes the most likely token, and the lower id of equal ones.
    pub temperature: f32,
    /// Probability that the most likely tokens must have together; 1 takes all.
    pub top_p: f32,
    /// Probability, relative to the most likely token's, that a token must have.
    pub min_p: f32,
    /// How many of the most likely tokens; 0 takes all.
    pub top_k: u32,
}

/// Bytes of a row of what `sampling_bytes` makes.
pub const SAMPLING_BYTES: usize = 24;

/// Rows as `sample` reads them.
pub fn sampling_bytes(rows: &[RowSampling]) -> Vec<u8> {
    let row = |row: &RowSampling| {
        let floats = [row.temperature, row.top_p, row.min_p].map(f32::to_ne_bytes);
        let random = row.random.to_ne_bytes();
        [&random[..], &floats.concat(), &row.top_k.to_ne_bytes()].concat()
    };
    rows.iter().flat_map(row).collect()
}

/// Chooses a token for each row. Fields that are addresses say what lies there.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Rows.
    pub rows: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// u32 `[rows]`: tokens, or `NOT_DECIDED`.
    pub chosen: u64,
    /// Activations `[rows, vocabulary]`.
    pub logits: u64,
    /// What `sampling_bytes` made.
    pub samplings: u64,
}

impl Sample {
    /// In any order: one for rows that take the most likely token or draw among all, one for rows that
    /// draw among their best. Errors: more than a kernel counts.
    pub fn launches(&self) -> Result<[Launch; 2], LaunchError> {
        Ok([self.launch("sample")?, self.launch("sample_ranked")?])
    }

    fn launch(&self, kernel: &'static str) -> Result<Launch, LaunchError> {
        Ok(Launch {
            kernel: kernel.into(),
            grid: [count(kernel, "rows", self.rows)?, 1, 1],
            threads: SAMPLE_THREADS,
            shared_bytes: 0,
            arguments: vec![
                Argument::Pointer(self.chosen),
                Argument::Pointer(self.logits),
                Argument::Pointer(self.samplings),
                Argument::U32(count(kernel, "tokens of the vocabulary", self.vocabulary)?),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_24_bytes() {
        let row = RowSampling { random: 0.5, temperature: 1.0, top_p: 0.9, min_p: 0.0, top_k: 40 };
        let bytes = sampling_bytes(&[row, row]);
        assert_eq!(bytes.len(), 2 * SAMPLING_BYTES);
        assert_eq!(bytes[20..24], 40u32.to_ne_bytes());
    }
}
