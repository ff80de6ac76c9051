//! The pieces of a layer between its matrix products.

use cuda_kernels::{
    AddAndNormalise, AddBias, Dtype, Embed, KernelShape, KvPlanes, Launch, Module, NOBODY,
    PrepareHeads, SiluMultiply, TakeRows,
};
use engine::kernels::{
    Compute, Element, HeadShape, KernelPath, KvPlanes as EnginePlanes, QuerySpan, RmsNorm,
    RopePairing, RopeTable, silu_multiply,
};
use half::{bf16, f16};
use kv_transfer::{HostMemory, KvLayout};

use crate::emulator::{SHAPE, Work, rounded, run, run_everywhere, stored};

const EPSILON: f32 = 1e-5;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

fn portable() -> Compute {
    Compute::new(1, KernelPath::Portable).unwrap()
}

#[test]
fn embeddings_are_rows_of_the_table() {
    let shape = KernelShape { weights: Dtype::Bf16, ..SHAPE };
    let (hidden, vocabulary) = (300, 11);
    let table = numbers(hidden * vocabulary, 1);
    let mut work = Work::default();
    let embed = Embed {
        rows: 4,
        hidden,
        vocabulary,
        out: work.room(4 * hidden * 4),
        table: work.numbers(&table, Dtype::Bf16),
        tokens: work.integers(&[3, 10, 3, 11]),
    };
    work.launches = vec![embed.launch().unwrap()];
    let memory = run_everywhere(Module::Layer, &shape, &work);
    let mut expected: Vec<f32> = [3, 10, 3]
        .iter()
        .flat_map(|token| rounded(&table[token * hidden..][..hidden], Dtype::Bf16))
        .collect();
    expected.resize(4 * hidden, 0.0);
    assert_eq!(memory.floats(embed.out), expected);
}

/// What is added, and normalised, of some rows.
fn normalise(
    shape: &KernelShape,
    x: &[f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    is_watched: bool,
) -> (Vec<f32>, Vec<u8>) {
    let hidden = weight.len();
    let mut work = Work::default();
    let normalise = AddAndNormalise {
        rows: x.len() / hidden,
        hidden,
        x: work.floats(x),
        delta: delta.map_or(0, |delta| work.numbers(delta, shape.activations)),
        weight: work.numbers(weight, shape.weights),
        normalised: work.room(x.len() * shape.activations.bytes()),
        epsilon: EPSILON,
    };
    work.launches = vec![normalise.launch().unwrap()];
    let run = if is_watched { run_everywhere } else { run };
    let memory = run(Module::Layer, shape, &work);
    (memory.floats(normalise.x), memory.bytes(normalise.normalised).to_vec())
}

#[test]
fn norms_are_right_and_the_same_alone() {
    let half = KernelShape { activations: Dtype::Bf16, weights: Dtype::Bf16, ..SHAPE };
    for (shape, hidden, rows) in
        [(SHAPE, 4, 3), (SHAPE, 900, 3), (half, 896, 2), (SHAPE, 4096, 2), (half, 2052, 3)]
    {
        let (x, delta) = (numbers(rows * hidden, 2), numbers(rows * hidden, 3));
        let weight = rounded(&numbers(hidden, 4), shape.weights);
        for delta in [None, Some(&delta[..])] {
            let (sums, found) = normalise(&shape, &x, delta, &weight, hidden == 900);
            let delta_or_zero = delta.map(|delta| rounded(delta, shape.activations));
            let delta_or_zero = delta_or_zero.unwrap_or_else(|| vec![0.0; x.len()]);
            let expected_sums: Vec<f32> =
                x.iter().zip(&delta_or_zero).map(|(x, y)| x + y).collect();
            assert_eq!(sums, expected_sums);
            let expected: Vec<f32> = sums
                .chunks_exact(hidden)
                .flat_map(|row| {
                    let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                    let scale = 1.0 / (squares / hidden as f64 + f64::from(EPSILON)).sqrt();
                    let normalised = row.iter().zip(&weight);
                    normalised.map(move |(x, w)| (f64::from(*x) * scale * f64::from(*w)) as f32)
                })
                .collect();
            assert_close(&found, &expected, shape.activations);
            for row in 0..rows {
                let of_row = row * hidden..(row + 1) * hidden;
                let delta = delta.map(|delta| &delta[of_row.clone()]);
                let (_, alone) = normalise(&shape, &x[of_row.clone()], delta, &weight, false);
                let bytes = shape.activations.bytes();
                assert!(
                    alone == found[of_row.start * bytes..of_row.end * bytes],
                    "row {row} alone"
                );
            }
        }
    }
}

/// Within what storing rounds, and a little of f32 arithmetic.
#[track_caller]
fn assert_close(found: &[u8], expected: &[f32], dtype: Dtype) {
    let (found, step) = match dtype {
        Dtype::F32 => (found.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(), 1e-6),
        Dtype::Bf16 => {
            let numbers = found.as_chunks().0.iter().map(|b| bf16::from_ne_bytes(*b).to_f32());
            (numbers.collect::<Vec<_>>(), 1.0 / 256.0)
        }
        Dtype::F16 => {
            let numbers = found.as_chunks().0.iter().map(|b| f16::from_ne_bytes(*b).to_f32());
            (numbers.collect(), 1.0 / 2048.0)
        }
    };
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= step * expected.abs().max(1.0), "{index}: {found}, not {expected}");
    }
}

/// Rows of two sequences, and one of padding, against the engine's kernels.
fn check_heads<E: Element>(shape: KernelShape, has_norms: bool, has_bias: bool, is_watched: bool) {
    let KernelShape { head_dim, heads, kv_heads, block_size, .. } = shape;
    let layout = KvLayout {
        numerics_id: String::new(),
        block_size,
        layers: 2,
        kv_heads,
        head_dim,
        element_bytes: shape.kv.bytes(),
    };
    let spans = [([4, 1, 3], 2 * block_size - 1, 2), ([0, 2, 5], 0, 3)];
    let rows = 5;
    let all = heads + 2 * kv_heads;
    let projected = rounded(&numbers(rows * all * head_dim, 5), shape.activations);
    let bias = has_bias.then(|| rounded(&numbers(all * head_dim, 6), shape.weights));
    let norms = [7, 8].map(|seed| rounded(&numbers(head_dim, seed), shape.weights));
    let pairing = if shape.neighbours { RopePairing::Neighbours } else { RopePairing::Halves };
    let table = RopeTable::new(head_dim, 10_000.0, None, pairing);
    let positions: Vec<usize> =
        spans.iter().flat_map(|(_, start, rows)| *start..start + rows).collect();
    let mut angles = vec![0.0; rows * head_dim];
    for (angles, position) in angles.chunks_exact_mut(head_dim).zip(&positions) {
        let (cos, sin) = angles.split_at_mut(head_dim / 2);
        table.at(*position, cos, sin);
    }

    let memory = HostMemory::new(6, layout.block_bytes()).unwrap();
    let biased: Vec<f32> = projected
        .iter()
        .enumerate()
        .map(|(i, x)| bias.as_ref().map_or(*x, |bias| x + bias[i % (all * head_dim)]))
        .collect();
    let part = |from: usize, heads: usize| -> Vec<f32> {
        let rows = biased.chunks_exact(all * head_dim);
        rows.flat_map(|row| row[from * head_dim..][..heads * head_dim].to_vec()).collect()
    };
    let head_shape = |norm: usize| HeadShape {
        angles: &angles,
        head_dim,
        pairing,
        norm: has_norms.then_some(RmsNorm { weight: &norms[norm], epsilon: EPSILON }),
    };
    let mut queries = part(0, heads);
    head_shape(0).prepare(&portable(), &mut queries, heads * head_dim);
    let engine_spans = spans.each_ref().map(|(blocks, start, rows)| QuerySpan {
        blocks,
        start: *start,
        rows: *rows,
    });
    let planes = EnginePlanes { layout: &layout, memory: &memory, layer: 1 };
    let (mut keys, values) = (part(heads, kv_heads), part(heads + kv_heads, kv_heads));
    planes.store::<E>(&portable(), &engine_spans, &head_shape(1), &mut keys, &values);
    // SAFETY: nobody writes to the pool any more.
    let expected_pool = unsafe { memory.read_blocks(0, 6) };

    let slots = spans.iter().flat_map(|(blocks, start, rows)| {
        (*start..start + rows)
            .map(|at| blocks[at / block_size] * block_size as u32 + (at % block_size) as u32)
    });
    let slots: Vec<u32> = slots.chain([NOBODY]).collect();
    let with_padding = |row: &[f32], len: usize| [row, &vec![1.0; len]].concat();
    let mut work = Work::default();
    let prepare = PrepareHeads {
        rows: rows + 1,
        projected: work.numbers(&with_padding(&projected, all * head_dim), shape.activations),
        bias: bias.as_ref().map_or(0, |bias| work.numbers(bias, shape.weights)),
        query_norm: if has_norms { work.numbers(&norms[0], shape.weights) } else { 0 },
        key_norm: if has_norms { work.numbers(&norms[1], shape.weights) } else { 0 },
        angles: work.floats(&with_padding(&angles, head_dim)),
        slots: work.integers(&slots),
        queries: work.room((rows + 1) * heads * head_dim * 4),
        planes: KvPlanes {
            pool: work.bytes(vec![0; 6 * layout.block_bytes()]),
            block_bytes: layout.block_bytes(),
            keys_at: layout.keys_offset(1),
            values_at: layout.values_offset(1),
        },
        epsilon: EPSILON,
    };
    work.launches = vec![prepare.launch(&shape).unwrap()];
    let run = if is_watched { run_everywhere } else { run };
    let memory = run(Module::Layer, &shape, &work);
    assert!(memory.bytes(prepare.planes.pool) == expected_pool, "keys and values: {shape:?}");
    let found = memory.floats(prepare.queries);
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&found[..queries.len()]) == bits(&queries), "queries: {shape:?}");
    assert!(found[queries.len()..].iter().all(|x| x.is_nan()), "padding is left alone");
}

#[test]
fn heads_have_the_bits_of_the_engines_kernels() {
    let bf16_kv = KernelShape {
        head_dim: 128,
        heads: 5,
        kv_heads: 1,
        kv: Dtype::Bf16,
        activations: Dtype::Bf16,
        weights: Dtype::Bf16,
        ..SHAPE
    };
    check_heads::<bf16>(bf16_kv, false, true, false);
    check_heads::<bf16>(bf16_kv, true, false, false);
    let f16_kv = KernelShape { head_dim: 80, block_size: 24, kv: Dtype::F16, ..SHAPE };
    check_heads::<f16>(f16_kv, true, true, false);
    check_heads::<f16>(KernelShape { neighbours: true, ..f16_kv }, false, false, false);
    let small = KernelShape { head_dim: 8, heads: 6, neighbours: true, ..SHAPE };
    check_heads::<f32>(small, true, false, true);
}

#[test]
fn swiglu_has_the_bits_of_the_engines_kernel() {
    for (dtype, inner) in [(Dtype::F32, 2056), (Dtype::F32, 8), (Dtype::Bf16, 128)] {
        let shape = KernelShape { activations: dtype, ..SHAPE };
        let rows = 3;
        let both = numbers(rows * 2 * inner, 9).iter().map(|x| 20.0 * x).collect::<Vec<_>>();
        let mut work = Work::default();
        let multiply = SiluMultiply {
            rows,
            inner,
            out: work.room(rows * inner * dtype.bytes()),
            both: work.numbers(&both, dtype),
        };
        work.launches = vec![multiply.launch().unwrap()];
        let memory = run_everywhere(Module::Layer, &shape, &work);
        let both = rounded(&both, dtype);
        let expected = both.chunks_exact(2 * inner).flat_map(|both| {
            let (gate, up) = both.split_at(inner);
            let mut gate = gate.to_vec();
            silu_multiply(&mut gate, up);
            stored(&gate, dtype)
        });
        assert!(memory.bytes(multiply.out) == expected.collect::<Vec<u8>>(), "{dtype:?} {inner}");
    }
}

#[test]
fn rows_are_taken_as_they_are() {
    let table = numbers(7 * 300, 10);
    let mut work = Work::default();
    let take = TakeRows {
        rows: 4,
        row_bytes: 300 * 4,
        out: work.room(4 * 300 * 4),
        table: work.floats(&table),
        numbers: work.integers(&[6, 0, NOBODY, 6]),
    };
    work.launches = vec![take.launch().unwrap()];
    let memory = run_everywhere(Module::Layer, &SHAPE, &work);
    let found = memory.floats(take.out);
    for (place, row) in [(0, 6), (1, 0), (3, 6)] {
        assert_eq!(found[place * 300..][..300], table[row * 300..][..300]);
    }
    assert!(found[600..900].iter().all(|number| number.is_nan()), "nobody's row is left alone");
}

#[test]
fn a_bias_is_added_to_each_row() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let shape = KernelShape { activations: dtype, weights: dtype, ..SHAPE };
        let (y, bias) = (rounded(&numbers(3 * 300, 11), dtype), rounded(&numbers(300, 12), dtype));
        let mut work = Work::default();
        let (at, bias_at) = (work.numbers(&y, dtype), work.numbers(&bias, dtype));
        let add = AddBias { rows: 3, outputs: 300, y: at, bias: bias_at };
        work.launches = vec![add.launch().unwrap()];
        let memory = run_everywhere(Module::Layer, &shape, &work);
        let sums: Vec<f32> = y.iter().zip(bias.iter().cycle()).map(|(y, bias)| y + bias).collect();
        assert!(memory.bytes(add.y) == stored(&sums, dtype), "{dtype:?}");
    }
}

/// A launch of another kernel's arguments would be garbage on a card.
#[test]
fn launches_have_the_parameters_of_their_kernels() {
    let mut work = Work::default();
    let out = work.room(64);
    let multiply = SiluMultiply { rows: 1, inner: 8, out, both: out };
    let launch = multiply.launch().unwrap();
    work.launches = vec![Launch { arguments: launch.arguments[..2].to_vec(), ..launch }];
    let program =
        crate::emulator::Program::of_module(Module::Layer, &SHAPE, crate::emulator::Watch::Nothing);
    let output = program.output(&work, 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("takes ppu, is given pp"));
}
