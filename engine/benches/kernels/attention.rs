//! Attention over paged KV.

use criterion::Criterion;
use engine::kernels::{AttentionShape, Element, QuerySpan, attend};
use half::{bf16, f16};
use kv_transfer::{HostMemory, KvLayout};

use crate::limits::{Cost, Limits};

const BLOCK_SIZE: usize = 16;
/// Layers of a pool, of which one is read: KV of one layer lies apart, as in a model.
const LAYERS: usize = 4;
/// Contexts of a pool are this large together, so that none is in the caches when its turn comes.
const POOL_BYTES: usize = 256 << 20;

/// Query heads, KV heads, and elements of a head.
const SHAPES: [(usize, usize, usize); 3] = [(14, 2, 64), (32, 8, 64), (8, 8, 128)];

/// One token each with a long context: what KV is read in.
pub fn decode(criterion: &mut Criterion, limits: &Limits) {
    for shape in SHAPES {
        for context_tokens in [512, 4096, 16384] {
            let tokens = (context_tokens - 1, 1);
            bench::<bf16>(criterion, limits, "decode/bf16", shape, tokens);
            bench::<f16>(criterion, limits, "decode/f16", shape, tokens);
        }
    }
}

/// A chunk of a prompt: its beginning, and one far behind.
pub fn prefill(criterion: &mut Criterion, limits: &Limits) {
    for shape in SHAPES {
        for start in [0, 3584] {
            bench::<bf16>(criterion, limits, "prefill/bf16", shape, (start, 512));
            bench::<f16>(criterion, limits, "prefill/f16", shape, (start, 512));
        }
    }
    bench::<f32>(criterion, limits, "prefill/f32", SHAPES[0], (0, 512));
}

fn bench<E: Element>(
    criterion: &mut Criterion,
    limits: &Limits,
    name: &str,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    (start, rows): (usize, usize),
) {
    let layout = KvLayout {
        numerics_id: String::new(),
        block_size: BLOCK_SIZE,
        layers: LAYERS,
        kv_heads,
        head_dim,
        element_bytes: size_of::<E>(),
    };
    let context_tokens = start + rows;
    let context_blocks = layout.blocks_for(context_tokens);
    let contexts = (POOL_BYTES / (context_blocks * layout.block_bytes())).max(1);
    let memory = pool::<E>(&layout, contexts * context_blocks);
    let blocks: Vec<u32> = (0..memory.blocks() as u32).collect();
    let mut turns = blocks.chunks(context_blocks).cycle();
    let queries = vec![0.3; rows * heads * head_dim];
    let mut out = vec![0.0; queries.len()];
    let seen_tokens: usize = (start + 1..=context_tokens).sum();
    let cost = Cost {
        bytes: context_tokens * kv_heads * head_dim * 2 * size_of::<E>(),
        multiply_adds: 2 * seen_tokens * heads * head_dim,
    };
    let name = format!("{name}/{heads}:{kv_heads}x{head_dim}/context={context_tokens}");
    limits.bench(criterion, &name, cost, |compute| {
        let shape = AttentionShape { layout: &layout, layer: 1, heads, window: None };
        let span = turns.next().map(|blocks| QuerySpan { blocks, start, rows });
        attend::<E>(compute, &shape, &memory, span.as_slice(), &queries, &mut out);
    });
}

fn pool<E: Element>(layout: &KvLayout, blocks: usize) -> HostMemory {
    let memory = HostMemory::new(blocks, layout.block_bytes()).expect("memory for a pool");
    let numbers: Vec<E> = (0..layout.block_bytes() / size_of::<E>())
        .map(|index| E::narrow((index * 7 % 23) as f32 / 23.0 - 0.5))
        .collect();
    // SAFETY: numbers without padding are bytes.
    let bytes = unsafe {
        std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(&numbers[..]))
    };
    for block in 0..blocks as u32 {
        // SAFETY: nobody else has this pool yet.
        unsafe { memory.write(block, 0, bytes.len()) }.copy_from_slice(bytes);
    }
    memory
}
