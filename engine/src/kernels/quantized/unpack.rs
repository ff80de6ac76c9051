//! Stored blocks to panels, 16 rows at once: bytes of the rows are transposed in registers, four at a
//! time, and codes picked out of them.
//!
//! Everything is inlined into functions that have the CPU's features: what is unpacked stays in
//! registers.

// Numbers of rows, outputs and fours index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::QuantFormat;
use super::panel::PanelRows;

/// Groups of the largest block.
pub const BLOCK_GROUPS_MAX: usize = 8;

/// A `PanelGroup` in registers.
#[derive(Clone, Copy)]
pub struct Registers {
    /// `[32 / 4]` of `[16, 4]` codes.
    pub codes: [__m512i; 8],
    /// Of the first half and the second; the first counts for both where the format has one.
    pub scales: [__m512; 2],
    /// Taken from each element.
    pub minima: __m512,
}

/// How a format's blocks are unpacked.
pub trait Unpack {
    /// The format.
    const FORMAT: QuantFormat;

    /// Unpacks block `block` of all rows into as many of `out` as it has groups.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and VL. `panel` holds 16 rows that have this block.
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; BLOCK_GROUPS_MAX]);
}

impl Registers {
    /// Nothing but zeros.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    pub unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        let (codes, number) = unsafe { (_mm512_setzero_si512(), _mm512_setzero_ps()) };
        Self { codes: [codes; 8], scales: [number; 2], minima: number }
    }
}

/// A block's bytes in 16 rows. All its methods ask for AVX-512 F, BW and VL, and for bytes within the
/// block.
#[derive(Clone, Copy)]
struct Blocks {
    first: *const u8,
    row_bytes: usize,
}

impl Blocks {
    #[inline(always)]
    unsafe fn of<F: Unpack>(panel: PanelRows<'_>, block: usize) -> Self {
        let at = block * F::FORMAT.block_bytes();
        debug_assert!(panel.bytes.len() == 16 * panel.row_bytes && at < panel.row_bytes);
        // SAFETY: within the first row (see `Unpack::unpack`).
        Self { first: unsafe { panel.bytes.as_ptr().add(at) }, row_bytes: panel.row_bytes }
    }

    /// 16 bytes of each row from `offset` on, as 4 registers of 16 dwords, one per row.
    #[inline(always)]
    unsafe fn transposed(self, offset: usize) -> [__m512i; 4] {
        let Self { first, row_bytes } = self;
        // SAFETY: 16 rows of so many bytes, each with the bytes from `offset` on.
        unsafe {
            let at = |row: usize| _mm_loadu_si128(first.add(row * row_bytes + offset).cast());
            let two = |row: usize| {
                _mm256_inserti128_si256(_mm256_castsi128_si256(at(row)), at(row + 4), 1)
            };
            let four =
                |row: usize| _mm512_inserti64x4(_mm512_castsi256_si512(two(row)), two(row + 8), 1);
            let (a, b, c, d) = (four(0), four(1), four(2), four(3));
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab_low, cd_low),
                _mm512_unpackhi_epi64(ab_low, cd_low),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    /// An f16 of each row.
    #[inline(always)]
    unsafe fn numbers(self, offset: usize) -> __m512 {
        // SAFETY: as in `transposed`, two bytes each; the array is 32 bytes.
        unsafe {
            let at = |row: usize| self.first.add(row * self.row_bytes + offset).cast::<u16>();
            let bits: [u16; 16] = std::array::from_fn(|row| at(row).read_unaligned());
            _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast()))
        }
    }

    /// A dword of each row.
    #[inline(always)]
    unsafe fn dwords(self, offset: usize) -> __m512i {
        // SAFETY: as in `transposed`, four bytes each; the array is 64 bytes.
        unsafe {
            let at = |row: usize| self.first.add(row * self.row_bytes + offset).cast::<u32>();
            let dwords: [u32; 16] = std::array::from_fn(|row| at(row).read_unaligned());
            _mm512_loadu_si512(dwords.as_ptr().cast())
        }
    }
}

/// `(x >> by) & mask`, dword by dword.
#[inline(always)]
unsafe fn picked(x: __m512i, by: usize, mask: i32) -> __m512i {
    // SAFETY: the CPU has AVX-512 F, as all of this module asks for.
    unsafe {
        let shifted = _mm512_srl_epi32(x, _mm_cvtsi32_si128(by as i32));
        _mm512_and_si512(shifted, _mm512_set1_epi32(mask))
    }
}

/// A byte four times: what is picked with it is picked from each byte of a dword.
const fn each(byte: u8) -> i32 {
    i32::from_ne_bytes([byte; 4])
}

pub struct Q8_0;

impl Unpack for Q8_0 {
    const FORMAT: QuantFormat = QuantFormat::Q8_0;

    #[inline(always)]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 34 bytes.
        unsafe {
            let blocks = Blocks::of::<Self>(panel, block);
            let (first, second) = (blocks.transposed(2), blocks.transposed(18));
            let sign = _mm512_set1_epi32(each(0x80));
            for four in 0..4 {
                out[0].codes[four] = _mm512_xor_si512(first[four], sign);
                out[0].codes[four + 4] = _mm512_xor_si512(second[four], sign);
            }
            out[0].scales[0] = blocks.numbers(0);
        }
    }
}

pub struct Q4_0;

impl Unpack for Q4_0 {
    const FORMAT: QuantFormat = QuantFormat::Q4_0;

    #[inline(always)]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 18 bytes.
        unsafe {
            let blocks = Blocks::of::<Self>(panel, block);
            let packed = blocks.transposed(2);
            for four in 0..4 {
                out[0].codes[four] = picked(packed[four], 0, each(0xf));
                out[0].codes[four + 4] = picked(packed[four], 4, each(0xf));
            }
            out[0].scales[0] = blocks.numbers(0);
        }
    }
}

pub struct Q5_0;

impl Unpack for Q5_0 {
    const FORMAT: QuantFormat = QuantFormat::Q5_0;

    #[inline(always)]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; BLOCK_GROUPS_MAX]) {
        /// Puts bits 0 to 3 of a dword into bit 0 of its bytes, when multiplied with it.
        const SPREAD: i32 = 1 | 1 << 7 | 1 << 14 | 1 << 21;
        // SAFETY: the caller's promises; a block is 22 bytes.
        unsafe {
            let blocks = Blocks::of::<Self>(panel, block);
            let (high, packed) = (blocks.dwords(2), blocks.transposed(6));
            for four in 0..8 {
                let low = picked(packed[four % 4], four / 4 * 4, each(0xf));
                let bits = picked(high, 4 * four, 0xf);
                let spread = _mm512_mullo_epi32(bits, _mm512_set1_epi32(SPREAD));
                let spread = _mm512_slli_epi32(picked(spread, 0, each(1)), 4);
                out[0].codes[four] = _mm512_or_si512(low, spread);
            }
            out[0].scales[0] = blocks.numbers(0);
        }
    }
}

pub struct Q4K;

impl Unpack for Q4K {
    const FORMAT: QuantFormat = QuantFormat::Q4K;

    #[inline(always)]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 144 bytes, its scales are the first 16.
        unsafe {
            let blocks = Blocks::of::<Self>(panel, block);
            for pair in 0..4 {
                let at = 16 + 32 * pair;
                let packed = [blocks.transposed(at), blocks.transposed(at + 16)];
                for half in 0..2 {
                    for four in 0..8 {
                        out[2 * pair + half].codes[four] =
                            picked(packed[four / 4][four % 4], 4 * half, each(0xf));
                    }
                }
            }
            let [numbers, low, middle, high] = blocks.transposed(0);
            let scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(numbers));
            let minimum = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(numbers, 16)));
            for (index, group) in out.iter_mut().enumerate() {
                let shift = 8 * (index % 4);
                let with = |bits, of| {
                    _mm512_or_si512(bits, _mm512_slli_epi32(picked(of, shift + 6, 3), 4))
                };
                let (scales, minima) = match index < 4 {
                    true => (picked(low, shift, 63), picked(middle, shift, 63)),
                    false => (
                        with(picked(high, shift, 15), low),
                        with(picked(high, shift + 4, 15), middle),
                    ),
                };
                group.scales[0] = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(scales));
                group.minima = _mm512_mul_ps(minimum, _mm512_cvtepi32_ps(minima));
            }
        }
    }
}

pub struct Q6K;

impl Unpack for Q6K {
    const FORMAT: QuantFormat = QuantFormat::Q6K;

    #[inline(always)]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; BLOCK_GROUPS_MAX]) {
        // SAFETY: the caller's promises; a block is 210 bytes: 128 of low bits, 64 of high ones, 16
        // scales and an f16.
        unsafe {
            let blocks = Blocks::of::<Self>(panel, block);
            for half in 0..2 {
                for sixteen in 0..2 {
                    let at = 64 * half + 16 * sixteen;
                    let low = [blocks.transposed(at), blocks.transposed(at + 32)];
                    let high = blocks.transposed(128 + 32 * half + 16 * sixteen);
                    for part in 0..4 {
                        for four in 0..4 {
                            let low = picked(low[part % 2][four], part / 2 * 4, each(0xf));
                            let high = picked(high[four], 2 * part, each(3));
                            out[4 * half + part].codes[4 * sixteen + four] =
                                _mm512_or_si512(low, _mm512_slli_epi32(high, 4));
                        }
                    }
                }
            }
            let (scales, scale) = (blocks.transposed(192), blocks.numbers(208));
            for (index, group) in out.iter_mut().enumerate() {
                for half in 0..2 {
                    let which = 2 * index + half;
                    let left = _mm_cvtsi32_si128(24 - 8 * (which % 4) as i32);
                    let signed = _mm512_srai_epi32(_mm512_sll_epi32(scales[which / 4], left), 24);
                    group.scales[half] = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(signed));
                }
            }
        }
    }
}
