//! A row's attention has the same bits whatever tile, part or batch it is in: those of the engine's CPU
//! kernels, or, on tensor cores, others that are near them.

use cuda_kernels::{
    AttendRows, AttendTiles, Dtype, KernelShape, KvPlanes, Module, Partials, Span, Tables,
    parts_of, tiles,
};
use engine::kernels::{AttentionShape, Compute, Element, KernelPath, QuerySpan, attend};
use half::{bf16, f16};
use kv_transfer::{HostMemory, KvLayout};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::emulator::{SHAPE, Work, rounded, run, run_everywhere, stored, widened};

const LAYERS: usize = 2;
const LAYER: usize = 1;

/// Sequences, and what the engine's kernels say of their last tokens.
struct Case {
    shape: KernelShape,
    window: Option<usize>,
    layout: KvLayout,
    pool: Vec<u8>,
    /// Blocks of each sequence.
    blocks: Vec<Vec<u32>>,
    /// The sequence, first position and rows of each span.
    spans: Vec<(usize, usize, usize)>,
    queries: Vec<f32>,
    /// On tensor cores of queries that are rounded, as the kernels round them.
    expected: Vec<f32>,
}

fn numbers(count: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-2.0..2.0)).collect()
}

impl Case {
    /// Each sequence has a random context before its rows: `(start, rows)`.
    fn new<E: Element>(
        shape: KernelShape,
        window: Option<usize>,
        spans: &[(usize, usize)],
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(shape.head_dim as u64);
        let layout = KvLayout {
            numerics_id: String::new(),
            block_size: shape.block_size,
            layers: LAYERS,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            element_bytes: shape.kv.bytes(),
        };
        let lengths: Vec<usize> =
            spans.iter().map(|(start, rows)| layout.blocks_for(start + rows)).collect();
        let count: usize = lengths.iter().sum::<usize>() + 1;
        let mut free: Vec<u32> = (0..count as u32).collect();
        free.shuffle(&mut rng);
        let blocks: Vec<Vec<u32>> =
            lengths.iter().map(|length| free.split_off(free.len() - length)).collect();
        let memory = HostMemory::new(count, layout.block_bytes()).unwrap();
        let mut case = Self {
            shape,
            window,
            layout,
            pool: Vec::new(),
            blocks,
            spans: spans.iter().enumerate().map(|(i, (start, rows))| (i, *start, *rows)).collect(),
            queries: numbers(spans.iter().map(|s| s.1).sum::<usize>() * row_len(&shape), &mut rng),
            expected: Vec::new(),
        };
        case.fill(&memory, &mut rng);
        case.expected = case.attend_on_the_cpu::<E>(&memory);
        // SAFETY: nobody writes to the pool any more.
        case.pool = unsafe { memory.read_blocks(0, count as u32) }.to_vec();
        case
    }

    /// Numbers where there are some, NaN everywhere else.
    fn fill(&self, memory: &HostMemory, rng: &mut StdRng) {
        let KvLayout { block_size, head_dim, kv_heads, element_bytes, .. } = self.layout;
        let block_bytes = self.layout.block_bytes();
        for block in 0..memory.blocks() as u32 {
            // SAFETY: nobody else has the memory yet.
            unsafe { memory.write(block, 0, block_bytes) }.fill(0xff);
        }
        for (sequence, start, rows) in &self.spans {
            for position in 0..start + rows {
                let block = self.blocks[*sequence][position / block_size];
                let slot = position % block_size;
                for head in 0..kv_heads {
                    for d in 0..head_dim {
                        let plane = head * block_size * head_dim;
                        let key = plane + d * block_size + slot;
                        let value = plane + slot * head_dim + d;
                        let keys_at = self.layout.keys_offset(LAYER) + key * element_bytes;
                        let values_at = self.layout.values_offset(LAYER) + value * element_bytes;
                        for at in [keys_at, values_at] {
                            let number = stored(&[rng.random_range(-1.0..1.0)], self.shape.kv);
                            // SAFETY: as above.
                            unsafe { memory.write(block, at, element_bytes) }
                                .copy_from_slice(&number);
                        }
                    }
                }
            }
        }
    }

    fn attend_on_the_cpu<E: Element>(&self, memory: &HostMemory) -> Vec<f32> {
        let compute = Compute::new(1, KernelPath::Portable).unwrap();
        let shape = AttentionShape {
            layout: &self.layout,
            layer: LAYER,
            heads: self.shape.heads,
            window: self.window,
        };
        let span = |(sequence, start, rows): &(usize, usize, usize)| QuerySpan {
            blocks: &self.blocks[*sequence],
            start: *start,
            rows: *rows,
        };
        let spans: Vec<QuerySpan<'_>> = self.spans.iter().map(span).collect();
        let queries = if self.shape.has_tensor_cores() {
            rounded(&self.queries, self.shape.kv)
        } else {
            self.queries.clone()
        };
        let mut out = vec![f32::NAN; self.queries.len()];
        attend::<E>(&compute, &shape, memory, &spans, &queries, &mut out);
        out
    }

    fn planes(&self, work: &mut Work) -> KvPlanes {
        KvPlanes {
            pool: work.bytes(self.pool.clone()),
            block_bytes: self.layout.block_bytes(),
            keys_at: self.layout.keys_offset(LAYER),
            values_at: self.layout.values_offset(LAYER),
        }
    }

    /// Tables as wide as the longest sequence needs, with blocks that do not exist behind the others.
    fn tables(&self, work: &mut Work) -> Tables {
        let table_blocks = self.blocks.iter().map(Vec::len).max().unwrap_or(0);
        let row = |blocks: &Vec<u32>| {
            let mut row = blocks.clone();
            row.resize(table_blocks, u32::MAX);
            row
        };
        let tables: Vec<u32> = self.blocks.iter().flat_map(row).collect();
        Tables { address: work.integers(&tables), table_blocks }
    }

    /// All spans as tiles, as chunks of a prompt that have `chunk_rows` rows at most.
    fn tiles(&self, chunk_rows: usize) -> (Work, u64) {
        let mut work = Work::default();
        let chunks = self.spans.iter().flat_map(|(sequence, start, rows)| {
            (0..*rows).step_by(chunk_rows).map(move |offset| Span {
                table: *sequence as u32,
                start: (start + offset) as u32,
                rows: chunk_rows.min(rows - offset) as u32,
            })
        });
        let tiles = tiles(&self.shape, &chunks.collect::<Vec<_>>());
        let attend = AttendTiles {
            tiles: work.bytes(tiles.iter().flat_map(|tile| tile.to_bytes()).collect()),
            count: tiles.len(),
            window: self.window,
            planes: self.planes(&mut work),
            tables: self.tables(&mut work),
            queries: work.floats(&self.queries),
            out: work.room(self.queries.len() * self.shape.activations.bytes()),
        };
        work.launches = vec![attend.launch(&self.shape).unwrap()];
        (work, attend.out)
    }

    /// Rows of all spans, `rows` of them from the `first` on, with one row of padding before.
    fn rows(&self, first: usize, rows: usize, parts_more: usize) -> (Work, u64) {
        let mut work = Work::default();
        let all = self.spans.iter().flat_map(|(sequence, start, rows)| {
            (*start..start + rows).map(|position| (*sequence as u32, position as u32))
        });
        let (tables, positions): (Vec<u32>, Vec<u32>) = all.skip(first).take(rows).unzip();
        let parts = positions.iter().map(|at| parts_of(*at as usize, self.window)).max().unwrap();
        let parts = parts + parts_more;
        let row_len = row_len(&self.shape);
        let queries = &self.queries[first * row_len..][..rows * row_len];
        let (values, stats) = Partials::bytes(&self.shape, rows + 1, parts);
        let attend = AttendRows {
            rows: rows + 1,
            parts,
            window: self.window,
            planes: self.planes(&mut work),
            tables: self.tables(&mut work),
            table_of: work.integers(&[&[cuda_kernels::NOBODY], &tables[..]].concat()),
            positions: work.integers(&[&[0], &positions[..]].concat()),
            queries: work.floats(&[&vec![0.0; row_len], queries].concat()),
            out: work.room((rows + 1) * row_len * self.shape.activations.bytes()),
            partials: Partials { values: work.room(values), stats: work.room(stats) },
        };
        work.launches = attend.launches(&self.shape).unwrap();
        (work, attend.out)
    }

    fn row_bytes(&self) -> usize {
        row_len(&self.shape) * self.shape.activations.bytes()
    }

    /// Of all rows: exactly what is expected, or near it.
    #[track_caller]
    fn assert_expected(&self, found: &[u8]) {
        let dtype = self.shape.activations;
        if !self.shape.has_tensor_cores() {
            return self.assert_same(found, &stored(&self.expected, dtype), 0);
        }
        let differences = widened(found, dtype).into_iter().zip(&self.expected);
        let error = differences.map(|(found, expected)| (found - expected).abs());
        // Not by f32::max, to which NaN is nothing.
        let error = error.fold(0.0, |max: f32, error| if error <= max { max } else { error });
        println!("{:?}: {error}", self.shape);
        assert!(error <= self.error_max(), "{error} of {}: {:?}", self.error_max(), self.shape);
    }

    /// A weight is rounded by at most one part in 2^9 (bf16) or 2^11 (f16), and so is the sum of
    /// weights. So a mean of values in [-1, 1] is wrong by twice as much, before it is rounded itself.
    fn error_max(&self) -> f32 {
        let rounding = |dtype| match dtype {
            Dtype::F32 => 0.0,
            Dtype::Bf16 => 1.0 / 512.0,
            Dtype::F16 => 1.0 / 2048.0,
        };
        2.0 * rounding(self.shape.kv) + rounding(self.shape.activations) + 1e-5
    }

    /// The rows that were found are those from the `first` on.
    #[track_caller]
    fn assert_same(&self, found: &[u8], all: &[u8], first: usize) {
        let expected = &all[first * self.row_bytes()..][..found.len()];
        let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
        let shape = &self.shape;
        assert_eq!(differs.map(|at| at / self.row_bytes()), None, "first other row: {shape:?}");
    }

    /// Everything at once, each way, and some rows alone.
    fn check(&self) {
        let rows = self.expected.len() / row_len(&self.shape);
        let (work, out) = self.tiles(usize::MAX);
        let memory = run(Module::Attention, &self.shape, &work);
        let all = memory.bytes(out);
        self.assert_expected(all);
        let (work, out) = self.tiles(4);
        self.assert_same(run(Module::Attention, &self.shape, &work).bytes(out), all, 0);
        for (first, rows, parts_more) in [(0, rows, 1), (rows / 2, 1, 0), (rows - 1, 1, 0)] {
            let (work, out) = self.rows(first, rows, parts_more);
            let memory = run(Module::Attention, &self.shape, &work);
            let (padding, found) = memory.bytes(out).split_at(self.row_bytes());
            assert!(padding.iter().all(|byte| *byte == 0xff), "padding is left alone");
            assert_eq!(found.len(), rows * self.row_bytes());
            self.assert_same(found, all, first);
        }
    }
}

fn row_len(shape: &KernelShape) -> usize {
    shape.heads * shape.head_dim
}

#[test]
fn llama_heads_in_bf16() {
    let shape = KernelShape { head_dim: 128, heads: 8, kv_heads: 2, kv: Dtype::Bf16, ..SHAPE };
    Case::new::<bf16>(shape, None, &[(0, 5), (1030, 3), (500, 20), (63, 1)]).check();
}

#[test]
fn seven_queries_of_a_group_and_a_window_of_less_than_a_chunk() {
    let shape = KernelShape { heads: 14, kv: Dtype::F16, ..SHAPE };
    Case::new::<f16>(shape, Some(40), &[(600, 12), (0, 3)]).check();
}

#[test]
fn small_blocks_and_single_queries() {
    let shape = KernelShape { head_dim: 80, heads: 3, kv_heads: 3, block_size: 8, ..SHAPE };
    Case::new::<f32>(shape, None, &[(90, 30), (511, 2)]).check();
}

#[test]
fn blocks_that_chunks_do_not_divide_and_a_window_of_parts() {
    let shape = KernelShape {
        head_dim: 96,
        heads: 6,
        kv_heads: 2,
        block_size: 24,
        kv: Dtype::Bf16,
        activations: Dtype::Bf16,
        ..SHAPE
    };
    Case::new::<bf16>(shape, Some(700), &[(1300, 9), (20, 30)]).check();
}

#[test]
fn wide_heads_in_small_tiles_and_groups_of_twelve() {
    let shape = KernelShape {
        head_dim: 256,
        heads: 12,
        kv_heads: 1,
        block_size: 32,
        kv: Dtype::F16,
        activations: Dtype::F16,
        ..SHAPE
    };
    Case::new::<f16>(shape, None, &[(520, 3), (10, 1)]).check();
}

#[test]
fn wide_heads_of_which_a_warp_has_an_odd_number_of_tiles_in_small_blocks() {
    let shape = KernelShape { head_dim: 144, heads: 4, block_size: 4, kv: Dtype::F16, ..SHAPE };
    Case::new::<f16>(shape, Some(100), &[(530, 70), (1, 2)]).check();
}

#[test]
fn one_query_of_a_group_in_tiles_of_several_chunks() {
    let shape = KernelShape { head_dim: 80, heads: 2, block_size: 64, kv: Dtype::Bf16, ..SHAPE };
    Case::new::<bf16>(shape, None, &[(450, 150), (0, 1)]).check();
}

#[test]
fn sixteen_queries_of_a_group_and_one_step() {
    let shape = KernelShape { head_dim: 16, heads: 32, kv: Dtype::Bf16, ..SHAPE };
    let shape = KernelShape { block_size: 12, activations: Dtype::Bf16, ..shape };
    Case::new::<bf16>(shape, Some(600), &[(1500, 11), (509, 6), (0, 2)]).check();
}

#[test]
fn heads_of_16_bits_that_tensor_cores_do_not_take() {
    let shape = KernelShape { head_dim: 72, heads: 8, kv: Dtype::Bf16, ..SHAPE };
    assert!(!shape.has_tensor_cores());
    Case::new::<bf16>(shape, Some(300), &[(700, 20), (3, 2)]).check();
    let shape = KernelShape { head_dim: 24, heads: 6, kv: Dtype::F16, ..SHAPE };
    Case::new::<f16>(shape, None, &[(520, 6)]).check();
}

#[test]
fn tiny_heads() {
    let shape = KernelShape { head_dim: 8, heads: 5, kv_heads: 1, block_size: 4, ..SHAPE };
    Case::new::<f32>(shape, None, &[(700, 2), (0, 40)]).check();
}

/// Small, because sanitizers are slow.
fn check_everywhere<E: Element>(shape: KernelShape, has_tensor_cores: bool) {
    assert_eq!(shape.has_tensor_cores(), has_tensor_cores);
    let case = Case::new::<E>(shape, Some(200), &[(505, 10), (3, 2)]);
    let (work, out) = case.tiles(usize::MAX);
    let memory = run_everywhere(Module::Attention, &shape, &work);
    let all = memory.bytes(out);
    case.assert_expected(all);
    let (work, out) = case.rows(5, 7, 0);
    let memory = run_everywhere(Module::Attention, &shape, &work);
    case.assert_same(&memory.bytes(out)[case.row_bytes()..], all, 5);
}

#[test]
fn every_access_is_in_bounds_and_ordered() {
    let shape = KernelShape { heads: 6, shared_bytes_max: 30 << 10, ..SHAPE };
    let shape = KernelShape { head_dim: 40, kv: Dtype::Bf16, ..shape };
    check_everywhere::<bf16>(shape, false);
}

#[test]
fn every_access_is_in_bounds_and_ordered_on_tensor_cores() {
    let shape = KernelShape { head_dim: 32, heads: 6, kv: Dtype::Bf16, ..SHAPE };
    check_everywhere::<bf16>(shape, true);
}

#[test]
fn every_access_is_in_bounds_and_ordered_where_two_warps_share_queries() {
    let shape = KernelShape { head_dim: 144, heads: 2, block_size: 4, kv: Dtype::F16, ..SHAPE };
    check_everywhere::<f16>(shape, true);
}
