//! What this machine can do at most, measured in the same run: bytes read and operations, per second.

use std::fs::File;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapOptions};
use multiversion::multiversion;
use serde_json::{Value, json};

/// Far more than caches hold.
const MEMORY_BYTES: usize = 512 << 20;

/// Passes over the memory; the fastest one counts.
const PASSES: usize = 8;

/// Words that are summed up side by side: 512 bytes, so that additions do not wait for each other.
const LANES: usize = 64;

/// Fastest reading of so much fresh memory, in large pages where the system gives them.
pub fn memory_bandwidth(threads: usize) -> Result<Value, String> {
    let refused = |error: std::io::Error| format!("no {MEMORY_BYTES} bytes of memory: {error}");
    let mut memory = MmapOptions::new().len(MEMORY_BYTES).map_anon().map_err(refused)?;
    // Where large pages cannot be had, ordinary ones are what there is.
    #[cfg(target_os = "linux")]
    let _refused = memory.advise(memmap2::Advice::HugePage);
    memory.fill(1);
    Ok(bandwidth(&memory, threads))
}

/// Fastest reading of a file that is mapped, as weights are.
pub fn file_bandwidth(path: &Path, threads: usize) -> Result<Value, String> {
    let unreadable = |error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(unreadable)?;
    // SAFETY: read-only, and whoever measures does not change the model meanwhile.
    let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
    Ok(bandwidth(&map, threads))
}

fn bandwidth(bytes: &[u8], threads: usize) -> Value {
    // SAFETY: every bit pattern is a number.
    let (_, words, _) = unsafe { bytes.align_to::<u64>() };
    let shares: Vec<&[u64]> = words.chunks(words.len().div_ceil(threads).max(1)).collect();
    let fastest = fastest_pass(shares.len(), |thread| {
        std::hint::black_box(sum(shares[thread]));
    });
    json!({"bytes_per_s": size_of_val(words) as f64 / fastest.as_secs_f64()})
}

/// The shortest of some passes that all threads begin together and of which the last to end counts.
fn fastest_pass(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let (begin, end) = (Barrier::new(threads), Barrier::new(threads));
    let passes = |thread: usize| {
        let pass = |_| {
            begin.wait();
            let began = Instant::now();
            work(thread);
            end.wait();
            began.elapsed()
        };
        (0..PASSES).map(pass).min().unwrap_or_default()
    };
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let passes = &passes;
            scope.spawn(move || passes(thread));
        }
        passes(0)
    })
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; LANES];
    for chunk in words.chunks_exact(LANES) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

/// Additions and multiplications per second, in billions, of those vector instructions that this CPU
/// has; none where it is of another kind.
pub fn arithmetic(threads: usize) -> Value {
    #[cfg(target_arch = "x86_64")]
    return x86::arithmetic(threads);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _unknown = threads;
        json!({})
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use engine::KernelPath;
    use serde_json::{Map, Value};

    use super::fastest_pass;

    const ROUNDS: usize = 4_000_000;

    /// Sums kept at once: enough that no instruction waits for the result of an earlier one.
    const SUMS: usize = 16;

    pub fn arithmetic(threads: usize) -> Value {
        let mut found = Map::new();
        let mut add = |name: &str, has: bool, products: usize, run: fn()| {
            if has {
                let s = fastest_pass(threads, |_| run()).as_secs_f64();
                let operations = threads * 2 * products;
                found.insert(name.into(), (operations as f64 / s / 1e9).into());
            }
        };
        let has_f32 = is_x86_feature_detected!("avx512f");
        let has_bf16 = has_f32 && is_x86_feature_detected!("avx512bf16");
        let has_int8 = has_f32 && is_x86_feature_detected!("avx512vnni");
        let has_tiles = KernelPath::AmxBf16.is_available();
        let lanes = ROUNDS * SUMS;
        // SAFETY: called only where the CPU has these instructions, as `add` checks.
        add("f32_gflop_per_s", has_f32, 16 * lanes, || unsafe { multiply_f32() });
        // SAFETY: as above.
        add("bf16_gflop_per_s", has_bf16 && !has_tiles, 32 * lanes, || unsafe { multiply_bf16() });
        // SAFETY: as above, and this process may use tiles.
        add("bf16_gflop_per_s", has_tiles, TILE_ROUNDS * 4 * 16 * 16 * 32, || unsafe {
            multiply_tiles();
        });
        // SAFETY: as above.
        add("int8_gop_per_s", has_int8, 64 * lanes, || unsafe { multiply_int8() });
        found.into()
    }

    #[target_feature(enable = "avx512f")]
    fn multiply_f32() {
        let (x, y) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply_bf16() {
        let ones = _mm512_set1_ps(black_box(1.0));
        let x = _mm512_cvtne2ps_pbh(ones, ones);
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    const TILE_ROUNDS: usize = 400_000;

    /// What `ldtilecfg` reads: palette 1, 16 rows of 64 bytes in each of 8 tiles.
    #[repr(C, align(64))]
    struct Shapes([u8; 16], [u16; 16], [u8; 16]);

    /// Four sums of two tiles by two.
    ///
    /// # Safety
    /// The CPU has tiles, and this process may use them.
    unsafe fn multiply_tiles() {
        let mut shapes = Shapes([0; 16], [0; 16], [0; 16]);
        shapes.0[0] = 1;
        shapes.1[..8].fill(64);
        shapes.2[..8].fill(16);
        // SAFETY: the caller's promise; 64 bytes are read, and nothing else is touched but tiles.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly));
            for _ in 0..TILE_ROUNDS {
                asm!("tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                     "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                     out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                     options(nostack, nomem));
            }
            asm!("tilerelease", options(nostack, nomem));
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply_int8() {
        let x = _mm512_set1_epi8(black_box(1));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
}
