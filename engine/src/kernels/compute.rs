//! The threads that compute, and whose turn it is.

use std::ops::Range;
use std::{fmt, io};

use parking_lot::{FairMutex, FairMutexGuard, Mutex};

use super::threads::Threads;
use super::{Defect, QuantizedPath};

/// Which kernels compute matrix products of bf16 weights. Results differ between paths (one
/// rounds activations to bf16, the other does not), so the path is part of the numerics id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelPath {
    /// Plain f32 arithmetic; equal results on every CPU.
    Portable,
    /// `vdpbf16ps` on AVX-512 BF16.
    Avx512Bf16,
}

impl KernelPath {
    /// Every path there is, on whatever CPU.
    pub const ALL: [Self; 2] = [Self::Portable, Self::Avx512Bf16];

    /// The fastest path that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw") {
            return Self::Avx512Bf16;
        }
        Self::Portable
    }
}

impl fmt::Display for KernelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx512Bf16 => "avx512-bf16",
        })
    }
}

impl KernelPath {
    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        self == Self::Portable || self == Self::detect()
    }
}

/// A pool of threads that engines of one process share. Steps take turns: on few cores,
/// overlapping steps would only make each slower and its duration noise.
pub struct Compute {
    threads: Threads,
    turn: FairMutex<()>,
    path: KernelPath,
    quantized: QuantizedPath,
    defect: Option<Defect>,
}

/// Work below this many multiply-adds stays on one thread: waking another costs as much.
pub const PARALLEL_WORK_MIN: usize = 1 << 16;

/// Work is cut into no smaller pieces than this, and into no more: a thread that is late, or is not
/// let run, then has little that others wait for.
const PIECE_WORK_MIN: usize = 1 << 19;
const PIECES_PER_THREAD: usize = 4;

impl Compute {
    /// Starts `threads` threads, one of which is whoever computes. `path` must be available. Errors:
    /// the system refuses threads.
    pub fn new(threads: usize, path: KernelPath) -> io::Result<Self> {
        assert!(path.is_available(), "this CPU has no {path} kernels");
        let quantized = match path == KernelPath::detect() {
            true => QuantizedPath::detect(),
            // Where plain kernels are asked for, all are plain.
            false => QuantizedPath::Portable,
        };
        let threads = Threads::new(threads)?;
        Ok(Self { threads, turn: FairMutex::new(()), path, quantized, defect: None })
    }

    /// Computes wrongly: for tests of the tests, which must fail with it.
    #[doc(hidden)]
    pub fn with_defect(threads: usize, path: KernelPath, defect: Defect) -> io::Result<Self> {
        Ok(Self { defect: Some(defect), ..Self::new(threads, path)? })
    }

    /// With other kernels for quantised weights than the fastest, which must be available.
    #[cfg(test)]
    pub(super) fn with_quantized_path(self, quantized: QuantizedPath) -> Self {
        assert!(quantized.is_available(), "this CPU has no {quantized:?} kernels");
        Self { quantized, ..self }
    }

    /// What it does wrong: nothing outside of tests.
    pub(super) fn defect(&self) -> Option<Defect> {
        self.defect
    }

    /// The kernels in use.
    pub fn path(&self) -> KernelPath {
        self.path
    }

    /// The kernels in use for quantised weights.
    pub(super) fn quantized_path(&self) -> QuantizedPath {
        self.quantized
    }

    /// Waits for this engine's turn; the turn ends when the guard is dropped.
    pub fn take_turn(&self) -> FairMutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Splits `0..items` into ranges when `multiply_adds` is worth it. Boundaries are multiples of
    /// `align`. How it splits must not change any result.
    pub fn split(
        &self,
        items: usize,
        align: usize,
        multiply_adds: usize,
        work: impl Fn(Range<usize>) + Sync,
    ) {
        let threads = self.threads.count();
        if threads == 1 || multiply_adds < PARALLEL_WORK_MIN || items <= align {
            return work(0..items);
        }
        let pieces = threads * (multiply_adds / PIECE_WORK_MIN).clamp(1, PIECES_PER_THREAD);
        let share = items.div_ceil(pieces).next_multiple_of(align);
        self.threads.run(items.div_ceil(share), &|piece| {
            work(piece * share..items.min((piece + 1) * share));
        });
    }

    /// Runs `work` for each of `0..parts` on whichever thread is free.
    pub fn split_dynamic(&self, parts: usize, work: impl Fn(usize) + Sync) {
        self.threads.run(parts, &work);
    }

    /// Splits `from` and `to` into chunks, as many of each, and runs `work` for each pair.
    pub fn split_chunks<T: Sync, U: Send>(
        &self,
        (from, from_chunk): (&[T], usize),
        (to, to_chunk): (&mut [U], usize),
        work: impl Fn(&[T], &mut [U]) + Sync,
    ) {
        let pairs = from.chunks(from_chunk).zip(to.chunks_mut(to_chunk));
        // Each is taken by one thread, which the lock says to the compiler.
        let pairs: Vec<_> = pairs.map(|pair| Mutex::new(Some(pair))).collect();
        self.split_dynamic(pairs.len(), |index| {
            if let Some((from, to)) = pairs[index].lock().take() {
                work(from, to);
            }
        });
    }
}
