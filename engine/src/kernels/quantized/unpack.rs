//! Stored blocks to panels, 16 rows at once: bytes of the rows are transposed in registers, four at a
//! time, and codes picked out of them.

// Numbers of rows, outputs and fours index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::panel::PanelRows;

/// Groups of the largest block.
pub const UNIT_GROUPS_MAX: usize = 8;

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
    /// Groups that are unpacked together: those of a block.
    const GROUPS: usize;
    /// Halves of a group have scales of their own.
    const HAS_HALVES: bool = false;
    /// Groups have minima.
    const HAS_MINIMA: bool = false;

    /// Unpacks block `block` of all rows into the first `GROUPS` of `out`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and VL. `panel` holds 16 rows that have this block.
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; UNIT_GROUPS_MAX]);
}

impl Registers {
    /// Nothing but zeros.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn zero() -> Self {
        let (codes, number) = (_mm512_setzero_si512(), _mm512_setzero_ps());
        Self { codes: [codes; 8], scales: [number; 2], minima: number }
    }
}

/// A block's bytes in 16 rows.
#[derive(Clone, Copy)]
struct Blocks {
    first: *const u8,
    row_bytes: usize,
}

impl Blocks {
    fn of(panel: PanelRows<'_>, block: usize) -> Self {
        let at = block * panel.format.block_bytes();
        debug_assert!(panel.bytes.len() == 16 * panel.row_bytes && at < panel.row_bytes);
        // SAFETY: within the first row (see `Unpack::unpack`).
        Self { first: unsafe { panel.bytes.as_ptr().add(at) }, row_bytes: panel.row_bytes }
    }

    /// 16 bytes of each row as 4 registers of 16 dwords, one per row.
    ///
    /// # Safety
    /// The bytes from `offset` on are within the block; AVX-512 F is there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn transposed(self, offset: usize) -> [__m512i; 4] {
        let Self { first, row_bytes } = self;
        // SAFETY: 16 rows of so many bytes, each with the bytes from `offset` on.
        let rows = |row: usize| unsafe {
            let at = |row: usize| _mm_loadu_si128(first.add(row * row_bytes + offset).cast());
            let two = _mm256_inserti128_si256(_mm256_castsi128_si256(at(row)), at(row + 4), 1);
            let more =
                _mm256_inserti128_si256(_mm256_castsi128_si256(at(row + 8)), at(row + 12), 1);
            _mm512_inserti64x4(_mm512_castsi256_si512(two), more, 1)
        };
        let (a, b, c, d) = (rows(0), rows(1), rows(2), rows(3));
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }

    /// An f16 of each row.
    ///
    /// # Safety
    /// As `transposed`, for two bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn numbers(self, offset: usize) -> __m512 {
        // SAFETY: as in `transposed`.
        let bits: [u16; 16] = std::array::from_fn(|row| unsafe {
            self.first.add(row * self.row_bytes + offset).cast::<u16>().read_unaligned()
        });
        // SAFETY: the array is 32 bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) })
    }

    /// A dword of each row.
    ///
    /// # Safety
    /// As `transposed`, for four bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn dwords(self, offset: usize) -> __m512i {
        // SAFETY: as in `transposed`.
        let dwords: [u32; 16] = std::array::from_fn(|row| unsafe {
            self.first.add(row * self.row_bytes + offset).cast::<u32>().read_unaligned()
        });
        // SAFETY: the array is 64 bytes.
        unsafe { _mm512_loadu_si512(dwords.as_ptr().cast()) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(byte: u8) -> __m512i {
    _mm512_set1_epi32(i32::from_ne_bytes([byte; 4]))
}

/// `(x >> by) & mask`, byte by byte; the mask hides what comes from the neighbour.
#[inline]
#[target_feature(enable = "avx512f")]
fn picked(x: __m512i, by: usize, mask: u8) -> __m512i {
    let shifted = _mm512_srl_epi32(x, _mm_cvtsi32_si128(by as i32));
    _mm512_and_si512(shifted, bytes(mask))
}

pub struct Q8_0;

impl Unpack for Q8_0 {
    const GROUPS: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; UNIT_GROUPS_MAX]) {
        let blocks = Blocks::of(panel, block);
        // SAFETY: a block is 34 bytes; features by the caller.
        let (first, second) = unsafe { (blocks.transposed(2), blocks.transposed(18)) };
        for four in 0..4 {
            out[0].codes[four] = _mm512_xor_si512(first[four], bytes(0x80));
            out[0].codes[four + 4] = _mm512_xor_si512(second[four], bytes(0x80));
        }
        // SAFETY: as above.
        out[0].scales[0] = unsafe { blocks.numbers(0) };
    }
}

pub struct Q4_0;

impl Unpack for Q4_0 {
    const GROUPS: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; UNIT_GROUPS_MAX]) {
        let blocks = Blocks::of(panel, block);
        // SAFETY: a block is 18 bytes; features by the caller.
        let packed = unsafe { blocks.transposed(2) };
        for four in 0..4 {
            out[0].codes[four] = picked(packed[four], 0, 0xf);
            out[0].codes[four + 4] = picked(packed[four], 4, 0xf);
        }
        // SAFETY: as above.
        out[0].scales[0] = unsafe { blocks.numbers(0) };
    }
}

pub struct Q5_0;

impl Unpack for Q5_0 {
    const GROUPS: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; UNIT_GROUPS_MAX]) {
        /// Puts bits 0 to 3 of a dword into bit 0 of its bytes, when multiplied with it.
        const SPREAD: i32 = 1 | 1 << 7 | 1 << 14 | 1 << 21;
        let blocks = Blocks::of(panel, block);
        // SAFETY: a block is 22 bytes; features by the caller.
        let (high, packed) = unsafe { (blocks.dwords(2), blocks.transposed(6)) };
        for four in 0..8 {
            let low = picked(packed[four % 4], four / 4 * 4, 0xf);
            let bits = _mm512_srl_epi32(high, _mm_cvtsi32_si128(4 * four as i32));
            let bits = _mm512_and_si512(bits, _mm512_set1_epi32(0xf));
            let spread = _mm512_mullo_epi32(bits, _mm512_set1_epi32(SPREAD));
            let spread = _mm512_and_si512(spread, bytes(1));
            out[0].codes[four] = _mm512_or_si512(low, _mm512_slli_epi32(spread, 4));
        }
        // SAFETY: as above.
        out[0].scales[0] = unsafe { blocks.numbers(0) };
    }
}

pub struct Q4K;

impl Unpack for Q4K {
    const GROUPS: usize = 8;
    const HAS_MINIMA: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; UNIT_GROUPS_MAX]) {
        let blocks = Blocks::of(panel, block);
        // SAFETY: a block is 144 bytes, its scales the first 16; features by the caller.
        let [numbers, low, middle, high] = unsafe { blocks.transposed(0) };
        let scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(numbers));
        let minimum = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(numbers, 16)));
        for pair in 0..4 {
            // SAFETY: as above.
            let first = unsafe { blocks.transposed(16 + 32 * pair) };
            // SAFETY: as above.
            let second = unsafe { blocks.transposed(32 + 32 * pair) };
            for half in 0..2 {
                let group = &mut out[2 * pair + half];
                for four in 0..4 {
                    group.codes[four] = picked(first[four], 4 * half, 0xf);
                    group.codes[four + 4] = picked(second[four], 4 * half, 0xf);
                }
            }
        }
        for (index, group) in out.iter_mut().enumerate() {
            let shift = 8 * (index % 4);
            let (scales, minima) = match index < 4 {
                true => (byte(low, shift, 63), byte(middle, shift, 63)),
                false => {
                    let with = |bits, of| {
                        _mm512_or_si512(bits, _mm512_slli_epi32(byte(of, shift + 6, 3), 4))
                    };
                    (with(byte(high, shift, 15), low), with(byte(high, shift + 4, 15), middle))
                }
            };
            group.scales[0] = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(scales));
            group.minima = _mm512_mul_ps(minimum, _mm512_cvtepi32_ps(minima));
        }
    }
}

/// `(x >> by) & mask` of each dword.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte(x: __m512i, by: usize, mask: i32) -> __m512i {
    let shifted = _mm512_srl_epi32(x, _mm_cvtsi32_si128(by as i32));
    _mm512_and_si512(shifted, _mm512_set1_epi32(mask))
}

pub struct Q6K;

impl Unpack for Q6K {
    const GROUPS: usize = 8;
    const HAS_HALVES: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(panel: PanelRows<'_>, block: usize, out: &mut [Registers; UNIT_GROUPS_MAX]) {
        let blocks = Blocks::of(panel, block);
        for half in 0..2 {
            for sixteen in 0..2 {
                let at = 64 * half + 16 * sixteen;
                // SAFETY: a block is 210 bytes: 128 of low bits, 64 of high ones, 16 scales and an
                // f16; features by the caller.
                let low = unsafe { [blocks.transposed(at), blocks.transposed(at + 32)] };
                // SAFETY: as above.
                let high = unsafe { blocks.transposed(128 + 32 * half + 16 * sixteen) };
                for part in 0..4 {
                    let codes = &mut out[4 * half + part].codes;
                    for four in 0..4 {
                        let low = picked(low[part % 2][four], part / 2 * 4, 0xf);
                        let high = picked(high[four], 2 * part, 3);
                        codes[4 * sixteen + four] =
                            _mm512_or_si512(low, _mm512_slli_epi32(high, 4));
                    }
                }
            }
        }
        // SAFETY: as above.
        let (scales, scale) = unsafe { (blocks.transposed(192), blocks.numbers(208)) };
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
