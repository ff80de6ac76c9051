//! Intel AMX: registers of 16 rows of 64 bytes ("tiles") and their products. Rust has no stable names
//! for the instructions, so that they are assembly, each beside its use.
//!
//! Rows of weights are tiles as they are mapped, so that nothing is brought into another order but the
//! activations: a product is `y^T = w x^T`, with 16 outputs as the rows of a tile and up to 16 rows of x
//! as its columns. A column's sums do not depend on the others: a batch changes no bit.

pub mod bf16;

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile.
const ROWS: usize = 16;

/// Bytes of a tile's row at most.
const ROW_BYTES: usize = 64;

/// Numbers that begin with a line of the cache: rows of a tile that lie in two lines take several times as
/// long to load.
struct InLines<T> {
    numbers: Vec<T>,
    start: usize,
}

impl<T: Copy> InLines<T> {
    fn new(value: T, len: usize) -> Self {
        let numbers = vec![value; len + ROW_BYTES / size_of::<T>()];
        let start = numbers.as_ptr().align_offset(ROW_BYTES);
        Self { numbers, start }
    }

    fn get(&self) -> &[T] {
        &self.numbers[self.start..]
    }

    fn get_mut(&mut self) -> &mut [T] {
        &mut self.numbers[self.start..]
    }
}

/// Whether tiles, and their products of bf16 and of 8 bits, are there. The system lets a process use
/// them when it asks, which is done once.
pub fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
            && has_instructions()
            && permitted()
    })
}

fn has_instructions() -> bool {
    /// amx-bf16, amx-tile and amx-int8 in edx of leaf 7.
    const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// What the system saves of tiles: their shapes and their contents.
    const STATES: u64 = 1 << 17 | 1 << 18;
    let has_features = __cpuid_count(7, 0).edx & FEATURES == FEATURES;
    // SAFETY: CPUs with these features have `xgetbv`.
    has_features && unsafe { extended_states() } & STATES == STATES
}

/// # Safety
/// The CPU has `xgetbv`.
#[target_feature(enable = "xsave")]
unsafe fn extended_states() -> u64 {
    // SAFETY: the caller's promise; register 0 is always there.
    unsafe { _xgetbv(0) }
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` of `arch_prctl(2)`, and the number of the tiles' contents.
    const REQUEST: libc::c_long = 0x1023;
    const CONTENTS: libc::c_long = 18;
    // SAFETY: this call takes two numbers, and changes what this process may do.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, CONTENTS) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The shapes of the eight tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tiles, in certain shapes; none when dropped, so that the system need not save them.
struct Tiles {
    /// They are this thread's.
    _thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Shapes the tiles, each `(rows, row_bytes)`, and fills them with zeros. `is_available` has said
    /// that there are any, and no other `Tiles` of this thread are in use.
    fn shape(shapes: [(usize, usize); 8]) -> Self {
        assert!(is_available(), "tiles are there");
        let mut config = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for (tile, (rows, row_bytes)) in shapes.into_iter().enumerate() {
            assert!((1..=ROWS).contains(&rows) && (1..=ROW_BYTES).contains(&row_bytes), "a tile");
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = row_bytes as u16;
        }
        // SAFETY: the instruction is there, as asserted, and reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
        Self { _thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A matrix of 16 by 16, turned. (Closures would not have the CPU's features.)
#[target_feature(enable = "avx512f")]
fn transposed(matrix: &[f32; ROWS * ROWS]) -> [f32; ROWS * ROWS] {
    // Fours of rows are turned within each quarter of a register.
    let mut fours = [_mm512_setzero_ps(); ROWS];
    for first in (0..ROWS).step_by(4) {
        let mut rows = [_mm512_setzero_ps(); 4];
        for (row, register) in rows.iter_mut().enumerate() {
            // SAFETY: each row is 16 floats.
            *register = unsafe { _mm512_loadu_ps(matrix[(first + row) * ROWS..].as_ptr()) };
        }
        let [a, b, c, d] = rows;
        let low = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        let high = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
        let low = (_mm512_castps_pd(low.0), _mm512_castps_pd(low.1));
        let high = (_mm512_castps_pd(high.0), _mm512_castps_pd(high.1));
        fours[first] = _mm512_castpd_ps(_mm512_unpacklo_pd(low.0, low.1));
        fours[first + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low.0, low.1));
        fours[first + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high.0, high.1));
        fours[first + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high.0, high.1));
    }
    // Now quarter q of fours[4 g + c] is column 4 q + c of rows 4 g to 4 g + 3.
    let mut turned = [0.0; ROWS * ROWS];
    for column in 0..4 {
        let (a, b) = (fours[column], fours[4 + column]);
        let (c, d) = (fours[8 + column], fours[12 + column]);
        let (ab_even, ab_odd) =
            (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) =
            (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
        let quarters = [
            _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even),
            _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd),
            _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even),
            _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd),
        ];
        for (quarter, row) in quarters.into_iter().enumerate() {
            let to = turned[(4 * quarter + column) * ROWS..].as_mut_ptr();
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(to, row) };
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_turned() {
        if !is_x86_feature_detected!("avx512f") {
            println!("this CPU has no AVX-512");
            return;
        }
        let matrix: [f32; ROWS * ROWS] = std::array::from_fn(|index| index as f32);
        // SAFETY: detected.
        let turned = unsafe { transposed(&matrix) };
        for index in 0..ROWS * ROWS {
            assert_eq!(turned[index % ROWS * ROWS + index / ROWS], matrix[index]);
        }
    }
}
