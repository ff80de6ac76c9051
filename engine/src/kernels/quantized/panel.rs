//! 16 outputs of a matrix in one arrangement, whatever their format.

use super::format::Group;
use super::{GROUP, OUTPUTS, QuantFormat};

/// Codes of four elements of 16 outputs: `[16, 4]`.
pub type Codes = [u8; 4 * OUTPUTS];

/// A group of 32 elements of 16 outputs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct PanelGroup {
    /// `[32 / 4, 16, 4]`.
    pub codes: [Codes; GROUP / 4],
    /// Of the first half and the second: equal where the format has one for both.
    pub scales: [[f32; OUTPUTS]; 2],
    /// Taken from each element.
    pub minima: [f32; OUTPUTS],
}

impl PanelGroup {
    /// Nothing but zeros.
    pub const ZERO: Self = Self {
        codes: [[0; 4 * OUTPUTS]; GROUP / 4],
        scales: [[0.0; OUTPUTS]; 2],
        minima: [0.0; OUTPUTS],
    };
}

/// 16 rows of stored weights, one behind the other.
#[derive(Clone, Copy)]
pub struct PanelRows<'a> {
    pub format: QuantFormat,
    pub bytes: &'a [u8],
    pub row_bytes: usize,
}

impl PanelRows<'_> {
    /// Brings all of them into `groups`, in order.
    pub fn unpack(&self, groups: &mut [PanelGroup]) {
        let per_block = self.format.block_elements() / GROUP;
        for (output, row) in self.bytes.chunks_exact(self.row_bytes).enumerate() {
            let blocks = row.chunks_exact(self.format.block_bytes());
            for (block, groups) in blocks.zip(groups.chunks_exact_mut(per_block)) {
                for (index, panel) in groups.iter_mut().enumerate() {
                    panel.set(output, &Group::of(self.format, block, index));
                }
            }
        }
    }
}

impl PanelGroup {
    #[inline(always)]
    fn set(&mut self, output: usize, group: &Group) {
        for (codes, four) in self.codes.iter_mut().zip(group.codes.as_chunks::<4>().0) {
            codes[4 * output..4 * output + 4].copy_from_slice(four);
        }
        for half in 0..2 {
            self.scales[half][output] = group.scales[half];
        }
        self.minima[output] = group.minimum;
    }
}
