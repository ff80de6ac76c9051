//! The same of candle's products, whose order of sums depends on their shape.

use std::sync::Arc;

use engine::{CandleDevice, CandleModel, Numerics};

use super::*;

/// A step by candle takes far longer than one by our kernels.
const SCENARIOS: u64 = 12;
/// How many scenarios may pass before it is noticed that sums depend on the batch.
const SCENARIOS_IN_FAST: u64 = 12;

const FIXTURES: [&str; 4] = ["qwen3-tied", "qwen2-bias", "mistral-window", "llama2"];

fn benches(numerics: Numerics) -> [Bench; 4] {
    FIXTURES.map(|fixture| {
        let directory = bench::directory(fixture);
        let model = CandleModel::load(&directory, CandleDevice::Cpu, numerics).unwrap();
        Bench::with_candle(Arc::new(model))
    })
}

#[test]
fn with_fixed_shapes_every_request_is_as_if_alone() {
    check_all(&benches(Numerics::Fixed), SCENARIOS);
}

/// Why there are fixed shapes at all.
#[test]
fn without_them_sums_depend_on_the_batch() {
    assert!(is_noticed(&benches(Numerics::Fast), SCENARIOS_IN_FAST));
}
