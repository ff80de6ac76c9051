//! Rows of matrices, shared among threads.

use std::marker::PhantomData;
use std::ops::Range;

use super::Compute;

/// Splits the rows of several matrices over threads when `multiply_adds` is worth it: `work` gets the
/// number of its first row, and its rows of each. A matrix is given with the length of its rows.
pub fn split_rows<const N: usize>(
    compute: &Compute,
    matrices: [(&mut [f32], usize); N],
    multiply_adds: usize,
    work: impl Fn(usize, [&mut [f32]; N]) + Sync,
) {
    let matrices = matrices.map(|(x, row_len)| SharedMatrix::new(x, row_len));
    let rows = matrices.iter().map(|matrix| matrix.rows).min().unwrap_or(0);
    compute.split(rows, 1, multiply_adds, |range| {
        // SAFETY: ranges are within all matrices, and each row belongs to one range.
        let rows = matrices.each_ref().map(|matrix| unsafe { matrix.rows(range.clone()) });
        work(range.start, rows);
    });
}

/// A matrix of which threads write disjoint parts, which slices cannot say.
pub struct SharedMatrix<'a> {
    base: *mut f32,
    rows: usize,
    row_len: usize,
    _x: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads write disjoint parts (see `rows` and `part`).
unsafe impl Sync for SharedMatrix<'_> {}

impl<'a> SharedMatrix<'a> {
    /// Over `x` (`[rows, row_len]`).
    pub fn new(x: &'a mut [f32], row_len: usize) -> Self {
        Self { rows: x.len() / row_len, base: x.as_mut_ptr(), row_len, _x: PhantomData }
    }

    /// Whole rows.
    ///
    /// # Safety
    /// No other thread has these rows.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn rows(&self, rows: Range<usize>) -> &mut [f32] {
        assert!(rows.end <= self.rows, "rows of the matrix");
        let len = rows.len() * self.row_len;
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(rows.start * self.row_len), len) }
    }

    /// A part of one row.
    ///
    /// # Safety
    /// No other thread has this part of the row.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, row: usize, part: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && part.end <= self.row_len, "a part of a row of the matrix");
        let start = row * self.row_len + part.start;
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), part.len()) }
    }
}
