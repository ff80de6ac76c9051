//! Sixteen f32 at a time, in whatever registers the CPU has. Every instruction set gives the same
//! bits: `mul_add` rounds once everywhere (where the CPU cannot, by software), and widening is exact.

#[cfg(target_arch = "x86_64")]
pub mod x86;

use half::{bf16, f16};

use super::Element;
use super::math::LANES;

/// An instruction set. To have a value of one is to know that the CPU has it.
pub trait Simd: Copy {
    /// Sixteen f32.
    type Lanes: Copy;
    /// Whether the lanes are one register of 32, rather than several of 16.
    const IS_WIDE: bool;

    /// The same in all lanes.
    fn splat(self, value: f32) -> Self::Lanes;
    /// Reads f32.
    fn load(self, from: &[f32; LANES]) -> Self::Lanes;
    /// Reads bf16, widened.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Lanes;
    /// Reads f16, widened.
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes;
    /// Writes f32.
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]);
    /// `a * b + sum`, rounded once.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes;
    /// The larger of each two, b where they cannot be compared.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// Says that what lies there will be read soon. Any address will do. It comes into the second cache:
    /// more can be on its way there than into the first.
    fn prefetch<X>(self, from: *const X);
    /// Calls work that is compiled for this instruction set.
    fn run<W: Work>(self, work: W);
}

/// Work that is compiled for each instruction set. Whatever `run` calls must be `inline(always)`, or go
/// through `Simd::run`: only what lands in a function of that instruction set is compiled for it.
pub trait Work {
    /// Works. The implementation is `inline(always)`.
    fn run<S: Simd>(self, simd: S);
}

/// Runs work with the best instructions of this CPU.
pub fn run<W: Work>(work: W) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = x86::Avx512::detect() {
            return simd.run(work);
        }
        if let Some(simd) = x86::Avx2::detect() {
            return simd.run(work);
        }
    }
    work.run(Plain);
}

/// Sixteen elements.
///
/// # Safety
/// `x` has so many from `start` on.
#[inline(always)]
pub unsafe fn lanes_at<X>(x: &[X], start: usize) -> &[X; LANES] {
    debug_assert!(x.len() >= start + LANES);
    // SAFETY: in bounds by the caller's promise.
    unsafe { &*x.as_ptr().add(start).cast() }
}

/// Whatever the compiler makes of loops over arrays.
#[derive(Clone, Copy)]
pub struct Plain;

impl Simd for Plain {
    type Lanes = [f32; LANES];
    const IS_WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Lanes {
        *from
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Lanes {
        from.map(Element::widen)
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::Lanes {
        from.map(Element::widen)
    }
    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        *to = lanes;
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, mut sum: Self::Lanes) -> Self::Lanes {
        for lane in 0..LANES {
            sum[lane] = a[lane].mul_add(b[lane], sum[lane]);
        }
        sum
    }
    #[inline(always)]
    fn max(self, a: Self::Lanes, mut b: Self::Lanes) -> Self::Lanes {
        for lane in 0..LANES {
            b[lane] = if a[lane] > b[lane] { a[lane] } else { b[lane] };
        }
        b
    }
    #[inline(always)]
    fn prefetch<X>(self, _: *const X) {}
    fn run<W: Work>(self, work: W) {
        work.run(self);
    }
}
