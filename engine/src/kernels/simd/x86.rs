//! AVX-512, and AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Simd, Work};
use crate::kernels::math::LANES;

/// 512-bit registers.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// Where the CPU has it.
    pub fn detect() -> Option<Self> {
        let has_it = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        (has_it && Avx2::detect().is_some()).then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type Lanes = __m512;
    const IS_WIDE: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` was detected.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` was detected; the array has 64 bytes.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        // SAFETY: `self` was detected; the array has 32 bytes.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        // SAFETY: `self` was detected; the array has 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store(self, lanes: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` was detected; the array has 64 bytes.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: `self` was detected.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` was detected.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn prefetch<X>(self, from: *const X) {
        // SAFETY: it reads nothing, and does nothing where nothing is.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    fn run<W: Work>(self, work: W) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
        fn compiled<W: Work>(simd: Avx512, work: W) {
            work.run(simd);
        }
        // SAFETY: `self` was detected.
        unsafe { compiled(self, work) }
    }
}

/// 256-bit registers, two for sixteen lanes.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// Where the CPU has it.
    pub fn detect() -> Option<Self> {
        let has_it = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_it.then_some(Self(()))
    }
}

impl Simd for Avx2 {
    type Lanes = [__m256; 2];
    const IS_WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        // SAFETY: `self` was detected.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: `self` was detected; each half has 32 bytes.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())] }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Lanes {
        // SAFETY: `self` was detected; each half has 16 bytes.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from[8..].as_ptr().cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes {
        // SAFETY: `self` was detected; each half has 16 bytes.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from[8..].as_ptr().cast())),
            ]
        }
    }
    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        // SAFETY: `self` was detected; each half has 32 bytes.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), lanes[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), lanes[1]);
        }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` was detected.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], sum[0]), _mm256_fmadd_ps(a[1], b[1], sum[1])] }
    }
    #[inline(always)]
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: `self` was detected.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn prefetch<X>(self, from: *const X) {
        // SAFETY: it reads nothing, and does nothing where nothing is.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    fn run<W: Work>(self, work: W) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<W: Work>(simd: Avx2, work: W) {
            work.run(simd);
        }
        // SAFETY: `self` was detected.
        unsafe { compiled(self, work) }
    }
}
