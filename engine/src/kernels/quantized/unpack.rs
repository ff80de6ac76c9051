//! Stored blocks to panels, several rows at once: bytes of the rows are transposed in registers, four at
//! a time, and codes picked out of them. One text for all instruction sets.
//!
//! Everything is inlined into functions that have the CPU's features: what is unpacked stays in
//! registers.

// Numbers of rows, outputs and fours index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::panel::{PanelGroup, PanelRows};
use super::vector::Vector;
use super::{GROUP, OUTPUTS, QuantFormat};
use crate::kernels::tile::prefetch;

/// Groups of the largest block.
pub const BLOCK_GROUPS_MAX: usize = 8;

/// As many of a `PanelGroup`'s outputs as a register has dwords.
#[derive(Clone, Copy)]
pub struct Registers<V: Vector> {
    /// `[32 / 4]` of `[rows, 4]` codes.
    pub codes: [V; 8],
    /// Of the first half and the second; the first counts for both where the format has one.
    pub scales: [V::Numbers; 2],
    /// Taken from each element.
    pub minima: V::Numbers,
}

/// How a format's blocks are unpacked.
pub trait Unpack {
    /// The format.
    const FORMAT: QuantFormat;

    /// Unpacks the same block of several rows into as many of `out` as it has groups.
    ///
    /// # Safety
    /// The CPU has what `V` needs. All rows have this block.
    unsafe fn unpack<V: Vector>(blocks: Blocks, out: &mut [Registers<V>; BLOCK_GROUPS_MAX]);
}

impl<V: Vector> Registers<V> {
    /// Nothing but zeros.
    ///
    /// # Safety
    /// The CPU has what `V` needs.
    #[inline(always)]
    pub unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        let (codes, number) = unsafe { (V::splat(0), V::splat(0).to_numbers()) };
        Self { codes: [codes; 8], scales: [number; 2], minima: number }
    }
}

/// A block in several rows. All its methods ask for what `V` needs, and for bytes within the block.
#[derive(Clone, Copy)]
pub struct Blocks {
    first: *const u8,
    row_bytes: usize,
}

impl Blocks {
    /// Block `block` of the panel's rows from `row` on, as many as `V` has.
    #[inline(always)]
    pub fn of<F: Unpack, V: Vector>(panel: PanelRows<'_>, row: usize, block: usize) -> Self {
        let at = block * F::FORMAT.block_bytes();
        let is_within =
            at < panel.row_bytes && (row + V::ROWS) * panel.row_bytes <= panel.bytes.len();
        debug_assert!(is_within, "block {block} of rows from {row} on");
        let first = panel.bytes.as_ptr().wrapping_add(row * panel.row_bytes + at);
        Self { first, row_bytes: panel.row_bytes }
    }

    /// 16 bytes of each row from `offset` on, as 4 registers of a dword per row.
    #[inline(always)]
    unsafe fn transposed<V: Vector>(self, offset: usize) -> [V; 4] {
        // SAFETY: the caller's promises.
        unsafe { V::transposed(self.first.add(offset), self.row_bytes) }
    }

    /// An f16 of each row.
    #[inline(always)]
    unsafe fn numbers<V: Vector>(self, offset: usize) -> V::Numbers {
        // SAFETY: the caller's promises.
        unsafe { V::numbers(self.first.add(offset), self.row_bytes) }
    }
}

/// Unpacks a whole panel.
///
/// # Safety
/// The CPU has what `V` needs. `panel` has 16 rows of as many groups as `to`.
#[inline(always)]
pub unsafe fn put_down<F: Unpack, V: Vector>(panel: PanelRows<'_>, to: &mut [PanelGroup]) {
    let per_block = F::FORMAT.block_elements() / GROUP;
    // SAFETY: the caller's promises; the blocks are those of a row, and what is stored is as long as
    // the rows' share of its place.
    unsafe {
        let mut unpacked = [Registers::<V>::zero(); BLOCK_GROUPS_MAX];
        for (block, to) in to.chunks_exact_mut(per_block).enumerate() {
            prefetch_next::<F>(panel, block);
            for row in (0..OUTPUTS).step_by(V::ROWS) {
                F::unpack(Blocks::of::<F, V>(panel, row, block), &mut unpacked);
                for (to, from) in to.iter_mut().zip(&unpacked) {
                    for (to, from) in to.codes.iter_mut().zip(from.codes) {
                        from.store(to[4 * row..].as_mut_ptr());
                    }
                    for (to, from) in to.scales.iter_mut().zip(from.scales) {
                        V::store_numbers(from, to[row..].as_mut_ptr());
                    }
                    V::store_numbers(from.minima, to.minima[row..].as_mut_ptr());
                }
            }
        }
    }
}

/// Rows of panels are too short for the CPU to see them coming: the next panels lie behind this one.
#[inline(always)]
pub fn prefetch_next<F: Unpack>(panel: PanelRows<'_>, block: usize) {
    let bytes = OUTPUTS * F::FORMAT.block_bytes();
    let ahead = match panel.bytes.len() < PREFETCH_BYTES_MAX / 2 {
        true => 2 * panel.bytes.len(),
        false => panel.bytes.len(),
    };
    if ahead > PREFETCH_BYTES_MAX {
        return;
    }
    let next = panel.bytes.as_ptr().wrapping_add(ahead + block * bytes);
    for line in (0..bytes).step_by(64) {
        prefetch(next.wrapping_add(line));
    }
}

/// Longer rows are seen.
const PREFETCH_BYTES_MAX: usize = 256 << 10;

/// `(x >> by) & mask`, dword by dword.
#[inline(always)]
unsafe fn picked<V: Vector>(x: V, by: usize, mask: i32) -> V {
    // SAFETY: the CPU has what `V` needs, as all of this module asks for.
    unsafe { x.shifted_right(by).and(V::splat(mask)) }
}

/// A byte four times: what is picked with it is picked from each byte of a dword.
const fn each(byte: u8) -> i32 {
    i32::from_ne_bytes([byte; 4])
}

pub struct Q8_0;

impl Unpack for Q8_0 {
    const FORMAT: QuantFormat = QuantFormat::Q8_0;

    #[inline(always)]
    unsafe fn unpack<V: Vector>(blocks: Blocks, out: &mut [Registers<V>; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 34 bytes.
        unsafe {
            let (first, second) = (blocks.transposed::<V>(2), blocks.transposed::<V>(18));
            let sign = V::splat(each(0x80));
            for four in 0..4 {
                out[0].codes[four] = first[four].xor(sign);
                out[0].codes[four + 4] = second[four].xor(sign);
            }
            out[0].scales[0] = blocks.numbers::<V>(0);
        }
    }
}

pub struct Q4_0;

impl Unpack for Q4_0 {
    const FORMAT: QuantFormat = QuantFormat::Q4_0;

    #[inline(always)]
    unsafe fn unpack<V: Vector>(blocks: Blocks, out: &mut [Registers<V>; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 18 bytes.
        unsafe {
            let packed = blocks.transposed::<V>(2);
            for four in 0..4 {
                out[0].codes[four] = picked(packed[four], 0, each(0xf));
                out[0].codes[four + 4] = picked(packed[four], 4, each(0xf));
            }
            out[0].scales[0] = blocks.numbers::<V>(0);
        }
    }
}

pub struct Q5_0;

impl Unpack for Q5_0 {
    const FORMAT: QuantFormat = QuantFormat::Q5_0;

    #[inline(always)]
    unsafe fn unpack<V: Vector>(blocks: Blocks, out: &mut [Registers<V>; BLOCK_GROUPS_MAX]) {
        /// Puts bits 0 to 3 of a dword into bit 0 of its bytes, when multiplied with it.
        const SPREAD: i32 = 1 | 1 << 7 | 1 << 14 | 1 << 21;
        // SAFETY: the caller's promises; a block is 22 bytes.
        unsafe {
            let (high, packed) =
                (V::dwords(blocks.first.add(2), blocks.row_bytes), blocks.transposed::<V>(6));
            for four in 0..8 {
                let low = picked(packed[four % 4], four / 4 * 4, each(0xf));
                let bits = picked(high, 4 * four, 0xf);
                let spread = picked(bits.times(V::splat(SPREAD)), 0, each(1));
                out[0].codes[four] = low.or(spread.shifted_left(4));
            }
            out[0].scales[0] = blocks.numbers::<V>(0);
        }
    }
}

pub struct Q4K;

impl Unpack for Q4K {
    const FORMAT: QuantFormat = QuantFormat::Q4K;

    #[inline(always)]
    unsafe fn unpack<V: Vector>(blocks: Blocks, out: &mut [Registers<V>; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 144 bytes, its scales are the first 16.
        unsafe {
            for pair in 0..4 {
                let at = 16 + 32 * pair;
                let packed = [blocks.transposed::<V>(at), blocks.transposed::<V>(at + 16)];
                for half in 0..2 {
                    for four in 0..8 {
                        out[2 * pair + half].codes[four] =
                            picked(packed[four / 4][four % 4], 4 * half, each(0xf));
                    }
                }
            }
            let [numbers, low, middle, high] = blocks.transposed::<V>(0);
            let scale = numbers.low_halves();
            let minimum = numbers.shifted_right(16).low_halves();
            for (index, group) in out.iter_mut().enumerate() {
                let shift = 8 * (index % 4);
                let with = |bits: V, of: V| bits.or(picked(of, shift + 6, 3).shifted_left(4));
                let (scales, minima) = match index < 4 {
                    true => (picked(low, shift, 63), picked(middle, shift, 63)),
                    false => (
                        with(picked(high, shift, 15), low),
                        with(picked(high, shift + 4, 15), middle),
                    ),
                };
                group.scales[0] = V::product(scale, scales.to_numbers());
                group.minima = V::product(minimum, minima.to_numbers());
            }
        }
    }
}

pub struct Q6K;

impl Unpack for Q6K {
    const FORMAT: QuantFormat = QuantFormat::Q6K;

    #[inline(always)]
    unsafe fn unpack<V: Vector>(blocks: Blocks, out: &mut [Registers<V>; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 210 bytes: 128 of low bits, 64 of high ones, 16
        // scales and an f16.
        unsafe {
            for half in 0..2 {
                for sixteen in 0..2 {
                    let at = 64 * half + 16 * sixteen;
                    let low = [blocks.transposed::<V>(at), blocks.transposed::<V>(at + 32)];
                    let high = blocks.transposed::<V>(128 + 32 * half + 16 * sixteen);
                    for part in 0..4 {
                        for four in 0..4 {
                            let low = picked(low[part % 2][four], part / 2 * 4, each(0xf));
                            let high = picked(high[four], 2 * part, each(3));
                            out[4 * half + part].codes[4 * sixteen + four] =
                                low.or(high.shifted_left(4));
                        }
                    }
                }
            }
            let (scales, scale) = (blocks.transposed::<V>(192), blocks.numbers::<V>(208));
            for (index, group) in out.iter_mut().enumerate() {
                for half in 0..2 {
                    let which = 2 * index + half;
                    let signed =
                        scales[which / 4].shifted_left(24 - 8 * (which % 4)).sign_of_byte();
                    group.scales[half] = V::product(scale, signed.to_numbers());
                }
            }
        }
    }
}
