//! What the machine can do at best, and what share of it a kernel reaches.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use engine::kernels::simd::{self, Simd, Work};
use engine::{Compute, KernelPath};

/// More than the caches hold.
const READ_BYTES: usize = 512 << 20;

/// Threads to measure with, and what they can do at best.
pub struct Limits {
    pools: Vec<Pool>,
}

struct Pool {
    threads: usize,
    compute: Compute,
    /// Bytes that are read from memory in a second.
    bytes: f64,
    /// Fused multiply-adds of f32 from registers in a second.
    multiply_adds: f64,
}

/// What a kernel does at least.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    /// Bytes that are read or written.
    pub bytes: usize,
    pub multiply_adds: usize,
}

impl Limits {
    /// Takes a few seconds.
    pub fn measure() -> Self {
        let memory = vec![1; READ_BYTES / size_of::<u64>()];
        let limits = Self { pools: [1, 2].map(|threads| Pool::measure(threads, &memory)).into() };
        for Pool { threads, bytes, multiply_adds, .. } in &limits.pools {
            let (gb, gflop) = (bytes / 1e9, 2.0 * multiply_adds / 1e9);
            println!("limits of {threads} threads: {gb:.1} GB/s, {gflop:.0} GFLOP/s");
        }
        limits
    }

    /// Measures a kernel on one thread and on two, and prints what was reached.
    pub fn bench(
        &self,
        criterion: &mut Criterion,
        name: &str,
        cost: Cost,
        mut kernel: impl FnMut(&Compute),
    ) {
        for pool in &self.pools {
            let mut best = Duration::MAX;
            criterion.bench_function(&format!("{name}/threads={}", pool.threads), |bencher| {
                bencher.iter_custom(|times| {
                    let (all, least) = timed(&pool.compute, times, &mut kernel);
                    best = best.min(least);
                    all
                });
            });
            // A filter may have left it out.
            if best < Duration::MAX {
                pool.print(best, cost);
            }
        }
    }
}

/// So many times: how long all took, and the fastest.
fn timed(compute: &Compute, times: u64, mut kernel: impl FnMut(&Compute)) -> (Duration, Duration) {
    let (mut all, mut least) = (Duration::ZERO, Duration::MAX);
    for _ in 0..times {
        let began = Instant::now();
        kernel(compute);
        let took = began.elapsed();
        (all, least) = (all + took, least.min(took));
    }
    (all, least)
}

impl Pool {
    fn measure(threads: usize, memory: &[u64]) -> Self {
        let compute = Compute::new(threads, KernelPath::detect()).expect("threads start");
        let seconds = |work: &(dyn Fn(usize) + Sync)| {
            let on_all = |compute: &Compute| compute.split_dynamic(threads, work);
            timed(&compute, 5, on_all).1.as_secs_f64()
        };
        let share = memory.len() / threads;
        let read = |thread: usize| simd::run(Read(&memory[thread * share..][..share]));
        let bytes = size_of_val(memory) as f64 / seconds(&read);
        let multiply = |_| simd::run(MultiplyAdd);
        let multiply_adds = (threads * MultiplyAdd::COUNT) as f64 / seconds(&multiply);
        Self { threads, compute, bytes, multiply_adds }
    }

    fn print(&self, best: Duration, cost: Cost) {
        let seconds = best.as_secs_f64();
        let (bytes, multiply_adds) = (cost.bytes as f64, cost.multiply_adds as f64);
        println!(
            "    best {:.1} us: {:.1} GB/s, {:.2} of reading; {:.0} GFLOP/s, {:.2} of arithmetic",
            1e6 * seconds,
            bytes / seconds / 1e9,
            bytes / seconds / self.bytes,
            2.0 * multiply_adds / seconds / 1e9,
            multiply_adds / seconds / self.multiply_adds,
        );
    }
}

/// Adds up memory.
struct Read<'a>(&'a [u64]);

impl Work for Read<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let mut sums = [0u64; 64];
        for numbers in self.0.as_chunks::<64>().0 {
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum = sum.wrapping_add(*number);
            }
        }
        black_box(sums);
    }
}

/// Multiply-adds in registers, with enough of them under way.
struct MultiplyAdd;

impl MultiplyAdd {
    const SUMS: usize = 12;
    const ROUNDS: usize = 4_000_000;
    /// Lanes that are multiplied and added.
    const COUNT: usize = Self::SUMS * Self::ROUNDS * 16;
}

impl Work for MultiplyAdd {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (factor, mut out) = (simd.splat(black_box(0.5)), [0.0; 16]);
        let mut sums = [simd.splat(1.0); Self::SUMS];
        for _ in 0..Self::ROUNDS {
            for sum in &mut sums {
                *sum = simd.mul_add(*sum, factor, factor);
            }
        }
        for sum in sums {
            simd.store(sum, &mut out);
            black_box(out);
        }
    }
}
