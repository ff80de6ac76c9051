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
}

/// The inverse frequencies of one head: `[head_dim / 2]`.
pub struct RopeTable {
    inverse_frequencies: Vec<f32>,
}

impl RopeTable {
    /// `theta^(-2i / head_dim)`, scaled where the model asks for it.
    pub fn new(head_dim: usize, theta: f32, scaling: Option<&RopeScaling>) -> Self {
        let frequency = |pair: usize| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            let inverse = 1.0 / libm::pow(f64::from(theta), f64::from(exponent)) as f32;
            scaling.map_or(inverse, |scaling| scaling.apply(inverse))
        };
        Self { inverse_frequencies: (0..head_dim / 2).map(frequency).collect() }
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
    fn apply(&self, inverse: f32) -> f32 {
        match *self {
            Self::Linear { factor } => inverse / factor,
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

/// Rotates each head of one token (`heads`: `[heads, head_dim]`): element i with i + head_dim / 2.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
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
