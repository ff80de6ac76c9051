//! What unpacking needs of registers, of 16 dwords or 8.

use std::arch::x86_64::*;

/// A register of dwords, one per row. All methods ask for a CPU that has the instructions.
pub trait Vector: Copy {
    /// Dwords.
    const ROWS: usize;
    /// As many f32.
    type Numbers: Copy;

    /// 16 bytes of each row, as 4 registers of a dword per row. The bytes are readable.
    unsafe fn transposed(first: *const u8, row_bytes: usize) -> [Self; 4];
    /// A dword of each row. The bytes are readable.
    unsafe fn dwords(first: *const u8, row_bytes: usize) -> Self;
    /// An f16 of each row. The bytes are readable.
    unsafe fn numbers(first: *const u8, row_bytes: usize) -> Self::Numbers;
    /// The same in all.
    unsafe fn splat(value: i32) -> Self;
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn xor(self, other: Self) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    unsafe fn shifted_left(self, bits: usize) -> Self;
    unsafe fn shifted_right(self, bits: usize) -> Self;
    /// The highest byte as a signed number.
    unsafe fn sign_of_byte(self) -> Self;
    /// The f16 in the lower half of each.
    unsafe fn low_halves(self) -> Self::Numbers;
    unsafe fn to_numbers(self) -> Self::Numbers;
    unsafe fn product(a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// Writes the dwords' bytes: 4 per row.
    unsafe fn store(self, to: *mut u8);
    /// Writes numbers, one per row.
    unsafe fn store_numbers(numbers: Self::Numbers, to: *mut f32);
}

/// The methods of a `Vector` that differ by nothing but the instructions' names.
macro_rules! instructions {
    ($and:ident, $or:ident, $xor:ident, $times:ident, $left:ident, $right:ident, $signed:ident,
     $splat:ident, $convert:ident, $product:ident, $store:ident, $store_numbers:ident,
     $from_halves:ident, $load_halves:ident, $load:ident) => {
        #[inline(always)]
        unsafe fn dwords(first: *const u8, row_bytes: usize) -> Self {
            // SAFETY: the caller's promises; the array is a register long.
            unsafe {
                let at = |row: usize| first.add(row * row_bytes).cast::<u32>().read_unaligned();
                let dwords: [u32; Self::ROWS] = std::array::from_fn(at);
                $load(dwords.as_ptr().cast())
            }
        }
        #[inline(always)]
        unsafe fn numbers(first: *const u8, row_bytes: usize) -> Self::Numbers {
            // SAFETY: the caller's promises; the array is half a register long.
            unsafe {
                let at = |row: usize| first.add(row * row_bytes).cast::<u16>().read_unaligned();
                let bits: [u16; Self::ROWS] = std::array::from_fn(at);
                $from_halves($load_halves(bits.as_ptr().cast()))
            }
        }
        #[inline(always)]
        unsafe fn splat(value: i32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $splat(value) }
        }
        #[inline(always)]
        unsafe fn and(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $and(self, other) }
        }
        #[inline(always)]
        unsafe fn or(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $or(self, other) }
        }
        #[inline(always)]
        unsafe fn xor(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $xor(self, other) }
        }
        #[inline(always)]
        unsafe fn times(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $times(self, other) }
        }
        #[inline(always)]
        unsafe fn shifted_left(self, bits: usize) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $left(self, _mm_cvtsi32_si128(bits as i32)) }
        }
        #[inline(always)]
        unsafe fn shifted_right(self, bits: usize) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $right(self, _mm_cvtsi32_si128(bits as i32)) }
        }
        #[inline(always)]
        unsafe fn sign_of_byte(self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $signed(self, _mm_cvtsi32_si128(24)) }
        }
        #[inline(always)]
        unsafe fn to_numbers(self) -> Self::Numbers {
            // SAFETY: the caller's promise.
            unsafe { $convert(self) }
        }
        #[inline(always)]
        unsafe fn product(a: Self::Numbers, b: Self::Numbers) -> Self::Numbers {
            // SAFETY: the caller's promise.
            unsafe { $product(a, b) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: the caller's promise.
            unsafe { $store(to.cast(), self) }
        }
        #[inline(always)]
        unsafe fn store_numbers(numbers: Self::Numbers, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { $store_numbers(to, numbers) }
        }
    };
}

/// Needs AVX-512 F, BW and VL.
impl Vector for __m512i {
    const ROWS: usize = 16;
    type Numbers = __m512;

    #[inline(always)]
    unsafe fn transposed(first: *const u8, row_bytes: usize) -> [Self; 4] {
        // SAFETY: the caller's promises.
        unsafe {
            let at = |row: usize| _mm_loadu_si128(first.add(row * row_bytes).cast());
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
    #[inline(always)]
    unsafe fn low_halves(self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(self)) }
    }

    instructions!(
        _mm512_and_si512,
        _mm512_or_si512,
        _mm512_xor_si512,
        _mm512_mullo_epi32,
        _mm512_sll_epi32,
        _mm512_srl_epi32,
        _mm512_sra_epi32,
        _mm512_set1_epi32,
        _mm512_cvtepi32_ps,
        _mm512_mul_ps,
        _mm512_storeu_si512,
        _mm512_storeu_ps,
        _mm512_cvtph_ps,
        _mm256_loadu_si256,
        _mm512_loadu_si512
    );
}

/// Needs AVX2 and F16C.
impl Vector for __m256i {
    const ROWS: usize = 8;
    type Numbers = __m256;

    #[inline(always)]
    unsafe fn transposed(first: *const u8, row_bytes: usize) -> [Self; 4] {
        // SAFETY: the caller's promises.
        unsafe {
            let at = |row: usize| _mm_loadu_si128(first.add(row * row_bytes).cast());
            let two = |row: usize| {
                _mm256_inserti128_si256(_mm256_castsi128_si256(at(row)), at(row + 4), 1)
            };
            let (a, b, c, d) = (two(0), two(1), two(2), two(3));
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab_low, cd_low),
                _mm256_unpackhi_epi64(ab_low, cd_low),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }
    #[inline(always)]
    unsafe fn low_halves(self) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let halves = _mm256_and_si256(self, _mm256_set1_epi32(0xffff));
            let packed = _mm256_packus_epi32(halves, halves);
            let packed = _mm256_permute4x64_epi64(packed, 0b1000);
            _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
        }
    }

    instructions!(
        _mm256_and_si256,
        _mm256_or_si256,
        _mm256_xor_si256,
        _mm256_mullo_epi32,
        _mm256_sll_epi32,
        _mm256_srl_epi32,
        _mm256_sra_epi32,
        _mm256_set1_epi32,
        _mm256_cvtepi32_ps,
        _mm256_mul_ps,
        _mm256_storeu_si256,
        _mm256_storeu_ps,
        _mm256_cvtph_ps,
        _mm_loadu_si128,
        _mm256_loadu_si256
    );
}
