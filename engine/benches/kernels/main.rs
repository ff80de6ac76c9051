//! Kernels against what this machine could do at best, measured in the same run: reading memory, and
//! fused multiply-adds from registers. After each benchmark a line says what share of both it reached,
//! by its fastest iteration.
//!
//! The shapes are those of Qwen2 0.5B (14 query heads on 2 KV heads), Llama 3.2 1B (32 on 8) and a model
//! without grouped heads.

mod attention;
mod layer;
mod limits;
mod product;

use criterion::{Criterion, criterion_group, criterion_main};

fn kernels(criterion: &mut Criterion) {
    let limits = limits::Limits::measure();
    attention::decode(criterion, &limits);
    attention::prefill(criterion, &limits);
    layer::element_wise(criterion, &limits);
    product::products(criterion, &limits);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = kernels
}
criterion_main!(benches);
