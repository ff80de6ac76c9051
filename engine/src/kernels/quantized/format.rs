//! The quantised formats of GGUF files, as ggml defines them: rows are sequences of blocks, each with
//! its scales and the codes of its elements.

use std::fmt;

use half::f16;

/// How quantised weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// Blocks of 32: f16 scale, 8-bit codes.
    Q8_0,
    /// Blocks of 32: f16 scale, 4-bit codes around 8.
    Q4_0,
    /// Blocks of 32: f16 scale, 5-bit codes around 16.
    Q5_0,
    /// Blocks of 256 in groups of 32: 6-bit scales and minima of f16 ones, 4-bit codes.
    Q4K,
    /// Blocks of 256 in groups of 16: 8-bit scales of an f16 one, 6-bit codes around 32.
    Q6K,
}

impl QuantFormat {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Q8_0, Self::Q4_0, Self::Q5_0, Self::Q4K, Self::Q6K];

    /// Elements of a block. A row's length is a multiple of it.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q5_0 => 22,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `elements`.
    pub const fn row_bytes(self, elements: usize) -> usize {
        elements / self.block_elements() * self.block_bytes()
    }

    /// Turns blocks into numbers: `out` has as many elements as `blocks` stands for.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(blocks.len(), self.row_bytes(out.len()), "whole blocks of {self}");
        let blocks = blocks.chunks_exact(self.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.block_elements())) {
            for (index, out) in out.chunks_exact_mut(super::GROUP).enumerate() {
                let group = Group::of(self, block, index);
                for (k, out) in out.iter_mut().enumerate() {
                    let code = i32::from(group.codes[k]) - self.zero();
                    *out = code as f32 * group.scales[k / 16] - group.minimum;
                }
            }
        }
    }

    /// The halves of a group have scales of their own.
    pub(super) const fn has_halves(self) -> bool {
        matches!(self, Self::Q6K)
    }

    /// Groups have minima.
    pub(super) const fn has_minima(self) -> bool {
        matches!(self, Self::Q4K)
    }

    /// A sum of products with codes has the sum of the other factors, times this format's zero, too
    /// much: what corrects it for a zero of 128 (`offset`), made right.
    #[inline(always)]
    pub(super) const fn correction(self, offset: i32) -> i32 {
        match self.zero() {
            0 => 0,
            zero => offset >> (7 - zero.ilog2()),
        }
    }

    /// The code that stands for zero (before minima).
    pub(super) const fn zero(self) -> i32 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q4K => 0,
            Self::Q6K => 32,
        }
    }
}

impl fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q5_0 => "Q5_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// 32 elements of a row: element k is `(codes[k] - zero) * scales[k / 16] - minimum`.
pub(super) struct Group {
    pub codes: [u8; 32],
    pub scales: [f32; 2],
    pub minimum: f32,
}

impl Group {
    /// Group `index` of a block.
    #[inline(always)]
    pub fn of(format: QuantFormat, block: &[u8], index: usize) -> Self {
        match format {
            QuantFormat::Q8_0 => Self::plain(block, std::array::from_fn(|k| block[2 + k] ^ 0x80)),
            QuantFormat::Q4_0 => Self::plain(block, nibbles(&block[2..18])),
            QuantFormat::Q5_0 => {
                let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
                let low = nibbles(&block[6..22]);
                let code = |k: usize| low[k] | ((((high >> k) & 1) as u8) << 4);
                Self::plain(block, std::array::from_fn(code))
            }
            QuantFormat::Q4K => Self::q4k(block, index),
            QuantFormat::Q6K => Self::q6k(block, index),
        }
    }

    #[inline(always)]
    fn plain(block: &[u8], codes: [u8; 32]) -> Self {
        let scale = number(&block[..2]);
        Self { codes, scales: [scale; 2], minimum: 0.0 }
    }

    #[inline(always)]
    fn q4k(block: &[u8], index: usize) -> Self {
        let (scale, minimum) = q4k_scale(&block[4..16], index);
        let packed = &block[16 + index / 2 * 32..][..32];
        let shift = index % 2 * 4;
        Self {
            codes: std::array::from_fn(|k| (packed[k] >> shift) & 0xf),
            scales: [number(&block[..2]) * f32::from(scale); 2],
            minimum: number(&block[2..4]) * f32::from(minimum),
        }
    }

    #[inline(always)]
    fn q6k(block: &[u8], index: usize) -> Self {
        let (half, part) = (index / 4, index % 4);
        let low = &block[half * 64 + part % 2 * 32..][..32];
        let high = &block[128 + half * 32..][..32];
        let (low_shift, high_shift) = (part / 2 * 4, part * 2);
        let code = |k: usize| ((low[k] >> low_shift) & 0xf) | (((high[k] >> high_shift) & 3) << 4);
        let scale = number(&block[208..210]);
        let of_half = |which: usize| scale * f32::from(block[192 + index * 2 + which] as i8);
        Self { codes: std::array::from_fn(code), scales: [of_half(0), of_half(1)], minimum: 0.0 }
    }
}

/// The 6-bit scale and minimum of group `index` of 8, of a Q4_K block's 12 bytes.
#[inline(always)]
fn q4k_scale(packed: &[u8], index: usize) -> (u8, u8) {
    match index {
        0..4 => (packed[index] & 63, packed[index + 4] & 63),
        _ => {
            let low = packed[index + 4];
            let (scale_high, minimum_high) = (packed[index - 4] >> 6, packed[index] >> 6);
            ((low & 0xf) | (scale_high << 4), (low >> 4) | (minimum_high << 4))
        }
    }
}

/// 16 bytes as 32 codes: all low halves first.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|k| if k < 16 { bytes[k] & 0xf } else { bytes[k - 16] >> 4 })
}

/// An f16.
#[inline(always)]
fn number(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
