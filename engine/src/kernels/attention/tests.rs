use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::kernels::KernelPath;
use crate::kernels::simd::{Plain, Simd, Work};

const KV_HEADS: usize = 2;
const LAYERS: usize = 2;
const LAYER: usize = 1;
/// Tokens of the longest context: more than two parts.
const CONTEXT_TOKENS: usize = 1100;

/// What attention computes with, in f32: `[positions, KV_HEADS, head_dim]`, and a pool that holds it.
struct Case<E> {
    layout: KvLayout,
    memory: HostMemory,
    blocks: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    element: PhantomData<E>,
}

fn numbers(count: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

impl<E: Element> Case<E> {
    fn new(head_dim: usize, block_size: usize, context_tokens: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(head_dim as u64);
        let stored = |numbers: Vec<f32>| -> Vec<f32> {
            numbers.into_iter().map(|number| E::narrow(number).widen()).collect()
        };
        let len = context_tokens * KV_HEADS * head_dim;
        let keys = stored(numbers(len, &mut rng));
        let values = stored(numbers(len, &mut rng));
        let layout = KvLayout {
            numerics_id: String::new(),
            block_size,
            layers: LAYERS,
            kv_heads: KV_HEADS,
            head_dim,
            element_bytes: size_of::<E>(),
        };
        let count = layout.blocks_for(context_tokens) as u32;
        let memory = HostMemory::new(count as usize + 1, layout.block_bytes()).unwrap();
        // Not in order, and block 0 is nobody's.
        let blocks = (0..count).map(|block| 1 + (block * 7 + 3) % count).collect::<Vec<_>>();
        let mut distinct = blocks.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let blocks = if distinct.len() == blocks.len() { blocks } else { (1..=count).collect() };
        let case = Self { layout, memory, blocks, keys, values, element: PhantomData };
        case.store();
        case
    }

    /// Numbers where there are some, NaN everywhere else.
    fn store(&self) {
        let KvLayout { block_size, head_dim, .. } = self.layout;
        let elements = self.layout.block_bytes() / size_of::<E>();
        for block in 0..self.memory.blocks() as u32 {
            self.block(block)[..elements].fill(E::narrow(f32::NAN));
        }
        let (keys_at, values_at) =
            (self.layout.keys_offset(LAYER), self.layout.values_offset(LAYER));
        for (index, key) in self.keys.iter().enumerate() {
            let (d, rest) = (index % head_dim, index / head_dim);
            let (head, position) = (rest % KV_HEADS, rest / KV_HEADS);
            let block = self.block(self.blocks[position / block_size]);
            let plane = head * block_size * head_dim;
            let slot = position % block_size;
            block[keys_at / size_of::<E>() + plane + d * block_size + slot] = E::narrow(*key);
            block[values_at / size_of::<E>() + plane + slot * head_dim + d] =
                E::narrow(self.values[index]);
        }
    }

    #[allow(clippy::mut_from_ref)]
    fn block(&self, block: u32) -> &mut [E] {
        // SAFETY: tests have their memory to themselves, and one slice of it at a time.
        let bytes = unsafe { self.memory.write(block, 0, self.layout.block_bytes()) };
        // SAFETY: aligned as `chunk::planes` says.
        unsafe {
            std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<E>())
        }
    }

    fn shape(&self, group: usize, window: Option<usize>) -> AttentionShape<'_> {
        AttentionShape { layout: &self.layout, layer: LAYER, heads: group * KV_HEADS, window }
    }

    fn attended(
        &self,
        threads: usize,
        shape: &AttentionShape<'_>,
        spans: &[QuerySpan<'_>],
        queries: &[f32],
    ) -> Vec<f32> {
        let compute = Compute::new(threads, KernelPath::Portable).unwrap();
        let mut out = vec![f32::NAN; queries.len()];
        attend::<E>(&compute, shape, &self.memory, spans, queries, &mut out);
        out
    }

    /// In f64, as it is written down.
    fn reference(&self, shape: &AttentionShape<'_>, position: usize, queries: &[f32]) -> Vec<f64> {
        let head_dim = self.layout.head_dim;
        let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let group = shape.heads / KV_HEADS;
        let mut out = vec![0.0; queries.len()];
        let heads = queries.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (head, (query, out)) in heads.enumerate() {
            let row_of = |position: usize| (position * KV_HEADS + head / group) * head_dim;
            let score = |position: usize| {
                let keys = &self.keys[row_of(position)..][..head_dim];
                let products = query.iter().zip(keys).map(|(q, k)| f64::from(*q) * f64::from(*k));
                products.sum::<f64>() / (head_dim as f64).sqrt()
            };
            let weights: Vec<f64> = (first..=position).map(|p| score(p).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (weight, position) in weights.iter().zip(first..) {
                for (out, value) in out.iter_mut().zip(&self.values[row_of(position)..]) {
                    *out += weight / sum * f64::from(*value);
                }
            }
        }
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Spans, as start and rows, are right; and right to the bit as each row is alone, on any number of
/// threads and in blocks of any size.
fn check<E: Element>(
    head_dim: usize,
    block_size: usize,
    group: usize,
    window: Option<usize>,
    spans: &[(usize, usize)],
) {
    let context = spans.iter().map(|(start, rows)| start + rows).max().unwrap();
    let case = Case::<E>::new(head_dim, block_size, context);
    let other = Case::<E>::new(head_dim, if block_size == 16 { 8 } else { 16 }, context);
    let (shape, other_shape) = (case.shape(group, window), other.shape(group, window));
    let row_len = shape.heads * head_dim;
    let rows: usize = spans.iter().map(|(_, rows)| rows).sum();
    let queries = numbers(rows * row_len, &mut StdRng::seed_from_u64(1));
    let queries: Vec<f32> = queries.into_iter().map(|query| 3.0 * query).collect();
    let span = |(start, rows): (usize, usize)| QuerySpan { blocks: &case.blocks, start, rows };
    let spans: Vec<_> = spans.iter().copied().map(span).collect();
    let what = format!("head {head_dim}, block {block_size}, group {group}, window {window:?}");

    let out = case.attended(1, &shape, &spans, &queries);
    let by_two = case.attended(2, &shape, &spans, &queries);
    assert!(bits(&out) == bits(&by_two), "{what}: two threads");
    let positions = spans.iter().flat_map(|span| span.start..span.start + span.rows);
    for (row, position) in positions.enumerate() {
        let queries = &queries[row * row_len..][..row_len];
        let out = &out[row * row_len..][..row_len];
        let alone = QuerySpan { blocks: &case.blocks, start: position, rows: 1 };
        let alone = case.attended(2, &shape, &[alone], queries);
        assert!(bits(out) == bits(&alone), "{what}: position {position} alone");
        let elsewhere = QuerySpan { blocks: &other.blocks, start: position, rows: 1 };
        let elsewhere = other.attended(1, &other_shape, &[elsewhere], queries);
        assert!(bits(out) == bits(&elsewhere), "{what}: position {position} in other blocks");
        for (found, expected) in out.iter().zip(case.reference(&shape, position, queries)) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 3e-6, "{what}: {found} instead of {expected} at {position}");
        }
    }
}

#[test]
fn all_shapes_are_right_and_the_same_alone() {
    // A prompt's beginning; one token, or few, where a part or a chunk begins or ends.
    let spans = [(0, 37), (63, 1), (60, 10), (129, 2), (CONTEXT_TOKENS - 1, 1), (509, 6)];
    for head_dim in [8, 16, 24, 40, 64, 80, 128, 256] {
        check::<f32>(head_dim, 16, 3, None, &spans);
        check::<bf16>(head_dim, 16, 2, None, &spans);
        check::<f16>(head_dim, 8, 1, None, &spans);
    }
    for group in 1..=9 {
        check::<bf16>(32, 16, group, None, &spans);
        check::<f32>(32, 32, group, Some(70), &spans);
    }
    for block_size in [8, 16, 24, 32, 48, 64] {
        check::<bf16>(64, block_size, 7, None, &spans);
        check::<f16>(64, block_size, 4, Some(100), &spans);
        check::<f32>(64, block_size, 1, None, &spans);
    }
    for window in [1, 2, 15, 16, 17, 63, 64, 65, 500, 512, 600, 5000] {
        check::<bf16>(16, 16, 2, Some(window), &spans);
    }
}

#[test]
fn random_shapes_are_right_and_the_same_alone() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..60 {
        let head_dim = 8 * rng.random_range(1..=16);
        let block_size = [8, 16, 32, 64][rng.random_range(0..4)];
        let group = rng.random_range(1..=8);
        let window = rng.random_bool(0.4).then(|| rng.random_range(1..700));
        let spans: Vec<_> = (0..rng.random_range(1..4))
            .map(|_| (rng.random_range(0..700), rng.random_range(1..30)))
            .collect();
        match rng.random_range(0..3) {
            0 => check::<f32>(head_dim, block_size, group, window, &spans),
            1 => check::<bf16>(head_dim, block_size, group, window, &spans),
            _ => check::<f16>(head_dim, block_size, group, window, &spans),
        }
    }
}

#[test]
fn a_window_as_long_as_the_context_hides_nothing() {
    let case = Case::<f32>::new(16, 16, 300);
    let queries = numbers(2 * KV_HEADS * 16, &mut StdRng::seed_from_u64(1));
    let span = [QuerySpan { blocks: &case.blocks, start: 299, rows: 1 }];
    let unlimited = case.attended(1, &case.shape(2, None), &span, &queries);
    let limited = case.attended(1, &case.shape(2, Some(300)), &span, &queries);
    assert!(bits(&unlimited) == bits(&limited));
}

/// Blocks before a window are not looked at: a sequence may have given them back.
#[test]
fn a_window_hides_what_lies_before_it() {
    let case = Case::<f32>::new(16, 16, 300);
    let queries = numbers(2 * KV_HEADS * 16, &mut StdRng::seed_from_u64(1));
    for window in 1..70 {
        let hidden = (300 - window) / 16;
        let mut poisoned = case.blocks.clone();
        poisoned[..hidden].fill(0);
        let attended = |blocks: &[u32]| {
            let span = [QuerySpan { blocks, start: 299, rows: 1 }];
            case.attended(1, &case.shape(2, Some(window)), &span, &queries)
        };
        let found = attended(&poisoned);
        assert!(found.iter().all(|value| value.is_finite()), "window {window}");
        assert!(bits(&found) == bits(&attended(&case.blocks)), "window {window}");
    }
}

/// Every instruction set of this CPU computes the same bits.
fn check_instructions<E: Element>(head_dim: usize, block_size: usize, group: usize, rows: usize) {
    let case = Case::<E>::new(head_dim, block_size, 200);
    let shape = case.shape(group, Some(150));
    let queries = numbers(rows * shape.heads * head_dim, &mut StdRng::seed_from_u64(1));
    let tile = Tile {
        shape: &shape,
        memory: &case.memory,
        blocks: &case.blocks,
        kv_head: 1,
        start: 200 - rows,
        rows,
        queries: &queries[group * head_dim..],
    };
    let computed = |run: &dyn Fn(PartOfTile<'_, E>)| {
        let mut scratch = Scratch::default();
        let mut partial = Partial::new(tile.queries(), head_dim);
        run(PartOfTile {
            tile: &tile,
            positions: tile.seen(),
            scratch: &mut scratch,
            partial: &mut partial,
            element: PhantomData,
        });
        [bits(&partial.maxima), bits(&partial.sums), bits(&partial.values)]
    };
    let plain = computed(&|part| part.run(Plain));
    assert!(plain == computed(&|part| simd::run(part)), "this CPU's best");
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = simd::x86::Avx2::detect() {
        assert!(plain == computed(&|part| avx2.run(part)), "AVX2");
    }
}

#[test]
fn every_instruction_set_computes_the_same_bits() {
    for (head_dim, block_size, group, rows) in
        [(64, 16, 7, 1), (64, 16, 7, 12), (24, 8, 1, 9), (40, 32, 3, 5), (128, 64, 4, 1)]
    {
        check_instructions::<f32>(head_dim, block_size, group, rows);
        check_instructions::<bf16>(head_dim, block_size, group, rows);
        check_instructions::<f16>(head_dim, block_size, group, rows);
    }
}
