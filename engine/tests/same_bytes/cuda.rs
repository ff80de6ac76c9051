//! The same on a GPU, which is emulated: its kernels and cuBLAS's products, in shapes that are fixed.

use std::sync::Arc;

use cuda_driver::fake;
use engine::{CudaModel, CudaOptions, Libraries, Numerics, WeightFormat};

use super::*;

/// A step on an emulated GPU takes far longer than one by the CPU's kernels.
const SCENARIOS: u64 = 12;
const FIXTURES: [&str; 4] = ["qwen3-tied", "qwen2-bias", "mistral-window", "llama2"];

fn bench(fixture: &str, numerics: Numerics) -> Bench {
    let libraries = fake::libraries();
    let library = |name| Some(libraries.join(name));
    let options = CudaOptions {
        ordinal: 0,
        numerics,
        weights: WeightFormat::AsStored,
        kernel_cache: Some(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")),
        libraries: Libraries {
            driver: library(fake::DRIVER),
            nvrtc: library(fake::NVRTC),
            cublas: library(fake::CUBLAS),
        },
        keeper: None,
    };
    Bench::with_cuda(Arc::new(CudaModel::load(&bench::directory(fixture), &options).unwrap()))
}

fn benches(numerics: Numerics) -> [Bench; 4] {
    FIXTURES.map(|fixture| bench(fixture, numerics))
}

#[test]
fn with_fixed_shapes_every_request_is_as_if_alone() {
    check_all(&benches(Numerics::Fixed), SCENARIOS);
}

/// Why there are fixed shapes at all.
#[test]
fn without_them_sums_depend_on_the_batch() {
    assert!(is_noticed(&benches(Numerics::Fast), SCENARIOS));
}
