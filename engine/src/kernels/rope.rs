//! Rotary position embedding (Su et al. 2021), with linear and Llama 3's frequency scaling.
//!
//! Angles are computed in f32 as the reference implementations do; sine and cosine by a portable
//! library, so that they are equal on every machine.

use multiversion::multiversion;

/// How the rotary frequencies are stretched to a longer context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Position interpolation (Chen et al. 2023): all frequencies are divided.
    Linear {
        /// Division of the frequencies.
        factor: f32,
    },
    /// Llama 3.1's scaling: low frequencies are divided by `factor`, high ones kept, those
    /// between blended. Wavelengths are measured against `original_context_tokens`.
    Llama3 {
        /// Division of the low frequencies.
        factor: f32,
        /// Below this many turns within the original context, a frequency is low.
        low_freq_factor: f32,
        /// Above this many turns, it is high.
        high_freq_factor: f32,
        /// The context length of the original training.
        original_context_tokens: f32,
    },
    /// Each frequency is divided by its own number, `[head_dim / 2]`: what GGUF files have instead
    /// of Llama 3.1's settings.
    Factors(Vec<f32>),
}

/// Which two elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Element i and i + head_dim / 2, as in Hugging Face checkpoints.
    Halves,
    /// Elements 2i and 2i + 1, as in GGUF files of Llamas, whose rows are in another order for it.
    Neighbours,
}

/// The inverse frequencies of one head: `[head_dim / 2]`.
#[derive(Clone)]
pub struct RopeTable {
    inverse_frequencies: Vec<f32>,
    /// Which elements they rotate.
    pub pairing: RopePairing,
}

impl RopeTable {
    /// `theta^(-2i / head_dim)`, scaled where the model asks for it.
    pub fn new(
        head_dim: usize,
        theta: f32,
        scaling: Option<&RopeScaling>,
        pairing: RopePairing,
    ) -> Self {
        let frequency = |pair: usize| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            let inverse = 1.0 / libm::pow(f64::from(theta), f64::from(exponent)) as f32;
            scaling.map_or(inverse, |scaling| scaling.apply(pair, inverse))
        };
        Self { inverse_frequencies: (0..head_dim / 2).map(frequency).collect(), pairing }
    }

    /// Cosines and sines for one position, each `[head_dim / 2]`.
    pub fn at(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for (pair, inverse) in self.inverse_frequencies.iter().enumerate() {
            let angle = f64::from(position as f32 * inverse);
            cos[pair] = libm::cos(angle) as f32;
            sin[pair] = libm::sin(angle) as f32;
        }
    }
}

impl RopeScaling {
    fn apply(&self, pair: usize, inverse: f32) -> f32 {
        match *self {
            Self::Linear { factor } => inverse / factor,
            Self::Factors(ref factors) => inverse / factors[pair],
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_tokens } => {
                let turns = original_context_tokens * inverse / (2.0 * std::f32::consts::PI);
                if turns < low_freq_factor {
                    return inverse / factor;
                }
                if turns > high_freq_factor {
                    return inverse;
                }
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * inverse / factor + smooth * inverse
            }
        }
    }
}

/// Rotates each head of one token (`heads`: `[heads, head_dim]`).
pub fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32], pairing: RopePairing) {
    match pairing {
        RopePairing::Halves => rotate_halves(heads, cos, sin),
        RopePairing::Neighbours => rotate_neighbours(heads, cos, sin),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn rotate_halves(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in heads.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for pair in 0..half {
            let (a, b) = (first[pair], second[pair]);
            first[pair] = a * cos[pair] - b * sin[pair];
            second[pair] = b * cos[pair] + a * sin[pair];
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn rotate_neighbours(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    for head in heads.chunks_exact_mut(2 * cos.len()) {
        for (pair, [a, b]) in head.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            (*a, *b) = (*a * cos[pair] - *b * sin[pair], *b * cos[pair] + *a * sin[pair]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neighbours rotate as the halves do that they are made of.
    #[test]
    fn both_pairings_turn_by_the_same_angles() {
        let table = RopeTable::new(8, 10_000.0, None, RopePairing::Halves);
        let (mut cos, mut sin) = ([0.0; 4], [0.0; 4]);
        table.at(7, &mut cos, &mut sin);
        let mut halves: Vec<f32> = (0..16).map(|k| (k * k) as f32 / 16.0 - 3.0).collect();
        let neighbour_of = |k: usize| k / 8 * 8 + k % 2 * 4 + k % 8 / 2;
        let mut neighbours: Vec<f32> = (0..16).map(|k| halves[neighbour_of(k)]).collect();
        rotate(&mut halves, &cos, &sin, RopePairing::Halves);
        rotate(&mut neighbours, &cos, &sin, RopePairing::Neighbours);
        let expected: Vec<f32> = (0..16).map(|k| halves[neighbour_of(k)]).collect();
        assert_eq!(neighbours, expected);
    }
}
