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
    /// `tdpbf16ps` on AMX.
    AmxBf16,
}

impl KernelPath {
    /// Every path there is, on whatever CPU.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx512Bf16, Self::AmxBf16];

    /// The fastest path that this CPU has.
    pub fn detect() -> Self {
        let available = Self::ALL.into_iter().rev().find(|path| path.is_available());
        available.unwrap_or(Self::Portable)
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AmxBf16 => super::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl fmt::Display for KernelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::AmxBf16 => "amx-bf16",
        })
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
        let quantized = match path {
            // Where plain kernels are asked for, all are plain.
            KernelPath::Portable if path != KernelPath::detect() => QuantizedPath::Portable,
            _ => QuantizedPath::detect(),
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

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.threads.count()
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
        self.split_several([items], align, multiply_adds, |_, range| work(range));
    }

    /// The same for several things at once, of which `items` says how many items each has and `work`
    /// gets the number. `multiply_adds` are those of all.
    pub fn split_several<const N: usize>(
        &self,
        items: [usize; N],
        align: usize,
        multiply_adds: usize,
        work: impl Fn(usize, Range<usize>) + Sync,
    ) {
        let (threads, all) = (self.threads.count(), items.iter().sum::<usize>());
        if threads == 1 || multiply_adds < PARALLEL_WORK_MIN || all <= align {
            return items.into_iter().enumerate().for_each(|(which, items)| work(which, 0..items));
        }
        let pieces = threads * (multiply_adds / PIECE_WORK_MIN).clamp(1, PIECES_PER_THREAD);
        let share = all.div_ceil(pieces).next_multiple_of(align);
        let pieces_of = items.map(|items| items.div_ceil(share));
        self.threads.run(pieces_of.iter().sum(), &|mut piece| {
            for (which, pieces) in pieces_of.into_iter().enumerate() {
                if piece < pieces {
                    let end = items[which].min((piece + 1) * share);
                    return work(which, piece * share..end);
                }
                piece -= pieces;
            }
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
