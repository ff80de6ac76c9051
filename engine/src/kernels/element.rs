//! Stored numbers: f32, bf16 and f16, each widened to f32 for arithmetic.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use multiversion::multiversion;

use super::math::LANES;
use super::simd::Simd;

/// A number as weights and KV blocks store it.
pub trait Element: Copy + Send + Sync + 'static {
    /// Whether it is an f32, which needs no widening.
    const IS_F32: bool;
    /// Exact widening.
    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn narrow(value: f32) -> Self;
    /// Rounds each of `from` into `to`.
    #[inline(always)]
    fn narrow_all(from: &[f32], to: &mut [Self]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = Self::narrow(*from);
        }
    }
    /// Widens as many as an instruction set takes at once.
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes;
}

impl Element for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes {
        simd.load(from)
    }
}

impl Element for bf16 {
    const IS_F32: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        bf16_from_f32(value)
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes {
        simd.load_bf16(from)
    }
}

impl Element for f16 {
    const IS_F32: bool = false;

    // Branch-free, so that loops over it vectorise: shift exponent and mantissa into place, then
    // scale by 2^112 to correct the exponent's bias, subnormals included.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let magnitude = bits & 0x7fff;
        let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
        let not_finite = f32::from_bits(0x7f80_0000 | (magnitude & 0x3ff) << 13);
        let value = if magnitude >= 0x7c00 { not_finite } else { scaled };
        f32::from_bits(value.to_bits() | sign)
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }
    #[inline(always)]
    fn narrow_all(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::Lanes {
        simd.load_f16(from)
    }
}

/// Rounds to nearest, ties to even, without branches; NaN stays NaN.
#[inline(always)]
pub fn bf16_from_f32(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    bf16::from_bits(if value.is_nan() { quiet_nan } else { rounded } as u16)
}

/// Rounds each number.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
pub fn narrow_all(values: &[f32], rounded: &mut [bf16]) {
    for (rounded, value) in rounded.iter_mut().zip(values) {
        *rounded = bf16_from_f32(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_as_the_reference_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16::from_bits(bits).widen(), f16::from_bits(bits).to_f32());
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{bits:#06x}");
        }
    }

    #[test]
    fn bf16_rounds_as_the_reference_does() {
        let mut bits: u32 = 1;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(bits);
            let (ours, theirs) = (bf16_from_f32(value), bf16::from_f32(value));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{bits:#010x}");
        }
        assert_eq!(bf16_from_f32(f32::INFINITY), bf16::INFINITY);
    }
}
