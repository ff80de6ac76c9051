//! What a matrix product is cut into for threads, and where the pieces write.

use std::marker::PhantomData;
use std::ops::Range;

/// All rows of x against some rows of the weights.
#[derive(Clone)]
pub struct Tile {
    /// Rows of x.
    pub rows: usize,
    /// Which outputs.
    pub outputs: Range<usize>,
    /// Elements of the reduction.
    pub inputs: usize,
}

/// Where tiles write. Threads have disjoint columns of the same rows, which slices cannot say.
pub struct Output<'a> {
    base: *mut f32,
    rows: usize,
    outputs: usize,
    _y: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads write disjoint elements (see `set`).
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Over `y` (`[rows, outputs]`).
    pub fn new(y: &'a mut [f32], outputs: usize) -> Self {
        Self { base: y.as_mut_ptr(), rows: y.len() / outputs, outputs, _y: PhantomData }
    }

    /// Whether a tile's rows and outputs are within.
    pub fn has(&self, tile: &Tile) -> bool {
        tile.rows <= self.rows && tile.outputs.end <= self.outputs
    }

    /// # Safety
    /// `row` and `output` are in bounds, and no other thread has this output column.
    #[inline(always)]
    pub unsafe fn set(&self, row: usize, output: usize, value: f32) {
        // SAFETY: in bounds and exclusive by the caller's promise.
        unsafe { *self.base.add(row * self.outputs + output) = value }
    }

    /// Some outputs of a row.
    ///
    /// # Safety
    /// As `set`, for all of them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn columns(&self, row: usize, outputs: Range<usize>) -> &mut [f32] {
        // SAFETY: in bounds and exclusive by the caller's promise.
        unsafe {
            let first = self.base.add(row * self.outputs + outputs.start);
            std::slice::from_raw_parts_mut(first, outputs.len())
        }
    }
}

/// Has the CPU fetch what will be read soon into its second cache, wherever that is.
#[inline(always)]
pub fn prefetch<T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// The same into the first cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch_near<T>(from: *const T) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which touches nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
}
