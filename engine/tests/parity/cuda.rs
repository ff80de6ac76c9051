//! The same of the decoder for NVIDIA GPUs, on one that is emulated: the driver, the compiler and
//! cuBLAS are those of `cuda-driver/fake`, all else is what runs on a card.

use cuda_driver::fake;
use engine::{CudaModel, CudaOptions, CudaRunner, Libraries, Numerics};

use super::*;

fn options(numerics: Numerics) -> CudaOptions {
    let libraries = fake::libraries();
    CudaOptions {
        ordinal: 1,
        numerics,
        block_size: 16,
        kernel_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")),
        libraries: Libraries {
            driver: Some(libraries.join(fake::DRIVER)),
            nvrtc: Some(libraries.join(fake::NVRTC)),
            cublas: Some(libraries.join(fake::CUBLAS)),
        },
    }
}

fn cuda(directory: &Path, numerics: Numerics) -> Arc<CudaModel> {
    Arc::new(CudaModel::load(directory, &options(numerics)).unwrap())
}

fn engine_on(model: &Arc<CudaModel>, sizes: Sizes) -> Engine {
    engine_of(Box::new(CudaRunner::new(model.clone())), sizes)
}

/// Whose sizes vectors divide.
fn computable() -> impl Iterator<Item = &'static str> {
    fixtures().filter(|name| *name != UNEVEN)
}

/// Its intermediate size is no multiple of 8.
const UNEVEN: &str = "qwen3-untied-sharded";

#[test]
fn logits_are_those_of_transformers() {
    for name in computable() {
        for numerics in [Numerics::Fixed, Numerics::Fast] {
            let mut engine = engine_on(&cuda(&fixture(name), numerics), ROOMY);
            let largest = largest_error(&mut engine, name);
            assert!(largest <= 1.0, "{name}, {numerics:?}: {largest} of what is allowed");
        }
    }
}
