//! What else a decoder layer does, of Qwen2 0.5B's size: a batch of 8 that decodes, and a chunk of 512.
//! All of it may lie in the caches, so shares of reading memory may be above 1.

use criterion::Criterion;
use engine::kernels::{
    Element, HeadShape, KvPlanes, QuerySpan, RmsNorm, RopePairing, silu_multiply,
};
use half::{bf16, f16};
use kv_transfer::{HostMemory, KvLayout};

use crate::limits::{Cost, Limits};

const HIDDEN: usize = 896;
const INTERMEDIATE: usize = 4864;
const HEAD_DIM: usize = 64;
const KV_HEADS: usize = 2;

/// Norms, SwiGLU, and KV on its way into its block.
pub fn element_wise(criterion: &mut Criterion, limits: &Limits) {
    for rows in [8, 512] {
        norm(criterion, limits, rows);
        swiglu(criterion, limits, rows);
        store::<bf16>(criterion, limits, "store/bf16", rows);
        store::<f16>(criterion, limits, "store/f16", rows);
    }
}

fn of_f32(numbers: usize) -> Cost {
    Cost { bytes: numbers * size_of::<f32>(), multiply_adds: 0 }
}

fn norm(criterion: &mut Criterion, limits: &Limits, rows: usize) {
    let weight = vec![1.0; HIDDEN];
    let norm = RmsNorm { weight: &weight, epsilon: 1e-6 };
    let (mut x, y, mut out) =
        (vec![1.0; rows * HIDDEN], vec![0.0; rows * HIDDEN], vec![0.0; rows * HIDDEN]);
    // Reads two, writes two.
    limits.bench(criterion, &format!("add and norm/{rows} rows"), of_f32(4 * x.len()), |compute| {
        norm.add_and_apply(compute, &mut x, &y, &mut out);
    });
}

fn swiglu(criterion: &mut Criterion, limits: &Limits, rows: usize) {
    let (mut gate, up) = (vec![1.0; rows * INTERMEDIATE], vec![1.0; rows * INTERMEDIATE]);
    limits.bench(criterion, &format!("swiglu/{rows} rows"), of_f32(3 * up.len()), |compute| {
        compute.split_chunks((&up, INTERMEDIATE), (&mut gate, INTERMEDIATE), |up, gate| {
            silu_multiply(gate, up);
        });
    });
}

fn store<E: Element>(criterion: &mut Criterion, limits: &Limits, name: &str, rows: usize) {
    let layout = KvLayout {
        numerics_id: String::new(),
        block_size: 16,
        layers: 1,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        element_bytes: size_of::<E>(),
    };
    let blocks: Vec<u32> = (0..layout.blocks_for(rows) as u32).collect();
    let memory = HostMemory::new(blocks.len(), layout.block_bytes()).expect("memory for a pool");
    let planes = KvPlanes { layout: &layout, memory: &memory, layer: 0 };
    let angles = vec![0.5; rows * HEAD_DIM];
    let pairing = RopePairing::Halves;
    let shape = HeadShape { angles: &angles, head_dim: HEAD_DIM, pairing, norm: None };
    let mut keys = vec![1.0; rows * KV_HEADS * HEAD_DIM];
    let values = keys.clone();
    let spans = [QuerySpan { blocks: &blocks, start: 0, rows }];
    let bytes = keys.len() * 2 * (size_of::<f32>() + size_of::<E>());
    let cost = Cost { bytes, multiply_adds: 0 };
    limits.bench(criterion, &format!("{name}/{rows} rows"), cost, |compute| {
        // Rotated again and again, they keep their length.
        planes.store::<E>(compute, &spans, &shape, &mut keys, &values);
    });
}
