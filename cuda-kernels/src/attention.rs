//! How attention is launched: by rows that have little to share (decode, drafts), or by tiles of rows
//! of one sequence (chunks of a prompt). A row's bits are the same by both. There are two sources:
//! `kernels/attention_mma.cu` for tensor cores (`KernelShape::has_tensor_cores`), and
//! `kernels/attention.cu`, which has the bits of the engine's CPU kernels, for what they do not take.

mod sizes;
mod tiles;

use crate::launch::{Argument, Launch, LaunchError, along_yz, count};
use crate::shape::KernelShape;
pub(crate) use sizes::Sizes;
pub use tiles::{Span, Tile, tiles};

/// Positions that are reduced together before they are merged with those before.
pub const PART_TOKENS: usize = 512;
const PART_THREADS: usize = 128;

/// Where one layer's keys and values lie: addresses in device memory, and bytes.
#[derive(Clone, Copy, Debug)]
pub struct KvPlanes {
    /// The pool's start, at least 16-byte aligned.
    pub pool: u64,
    /// Bytes of one block over all layers.
    pub block_bytes: usize,
    /// Where in a block the layer's keys begin.
    pub keys_at: usize,
    /// Where its values begin.
    pub values_at: usize,
}

/// Which blocks sequences have: an address of u32 `[sequences, table_blocks]`.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// In device memory.
    pub address: u64,
    /// Blocks of a row of the table.
    pub table_blocks: usize,
}

/// Room for what `attend_parts` leaves of rows that see several parts.
#[derive(Clone, Copy, Debug)]
pub struct Partials {
    /// f32 `[rows, heads, parts, head_dim]`.
    pub values: u64,
    /// f32 `[rows, heads, parts, 2]`.
    pub stats: u64,
}

/// Rows that attend, each to its own context. Fields that are addresses say what lies there.
#[derive(Clone, Copy, Debug)]
pub struct AttendRows {
    /// Rows of the batch; at most 65,535.
    pub rows: usize,
    /// As many as the row that sees most has (`parts_of`); more do not harm.
    pub parts: usize,
    /// How many tokens a row sees at most; all where absent.
    pub window: Option<usize>,
    /// Keys and values of every position that is seen.
    pub planes: KvPlanes,
    /// Blocks of sequences.
    pub tables: Tables,
    /// u32 `[rows]`: each row's row of the table, or `NOBODY`.
    pub table_of: u64,
    /// u32 `[rows]`.
    pub positions: u64,
    /// f32 `[rows, heads, head_dim]`.
    pub queries: u64,
    /// Activations, `[rows, heads, head_dim]`.
    pub out: u64,
    /// Room that nobody else uses meanwhile.
    pub partials: Partials,
}

/// Rows of the same sequences that attend together. Fields that are addresses say what lies there.
#[derive(Clone, Copy, Debug)]
pub struct AttendTiles {
    /// `[tiles]` of `Tile`.
    pub tiles: u64,
    /// How many.
    pub count: usize,
    /// How many tokens a row sees at most; all where absent.
    pub window: Option<usize>,
    /// Keys and values of every position that is seen.
    pub planes: KvPlanes,
    /// Blocks of sequences.
    pub tables: Tables,
    /// f32 `[rows, heads, head_dim]`.
    pub queries: u64,
    /// Activations, `[rows, heads, head_dim]`.
    pub out: u64,
}

/// Parts that a row at `position` sees.
pub fn parts_of(position: usize, window: Option<usize>) -> usize {
    let first_seen = window.map_or(0, |window| (position + 1).saturating_sub(window.max(1)));
    position / PART_TOKENS - first_seen / PART_TOKENS + 1
}

impl Partials {
    /// Bytes of `values` and of `stats`.
    pub fn bytes(shape: &KernelShape, rows: usize, parts: usize) -> (usize, usize) {
        let count = rows * shape.heads * parts;
        (count * shape.head_dim * size_of::<f32>(), count * 2 * size_of::<f32>())
    }
}

impl AttendRows {
    /// One launch after the other. Errors: more rows than a grid has room for.
    pub fn launches(&self, shape: &KernelShape) -> Result<Vec<Launch>, LaunchError> {
        const ATTEND: &str = "attend_parts";
        let rows = along_yz(ATTEND, "rows", self.rows)?;
        let sizes = Sizes::of(shape);
        let parts = count(ATTEND, "parts", self.parts)?;
        let window = window(ATTEND, self.window)?;
        let attend = Launch {
            kernel: ATTEND.into(),
            grid: [parts, (shape.kv_heads * sizes.subgroups) as u32, rows],
            threads: PART_THREADS as u32,
            shared_bytes: sizes.part_shared_bytes as u32,
            arguments: vec![
                Argument::Pointer(self.out),
                Argument::Pointer(self.partials.values),
                Argument::Pointer(self.partials.stats),
                Argument::Pointer(self.queries),
                Argument::Pointer(self.planes.pool),
                Argument::Pointer(self.tables.address),
                Argument::Pointer(self.table_of),
                Argument::Pointer(self.positions),
                Argument::U32(count(ATTEND, "blocks of a table", self.tables.table_blocks)?),
                Argument::U32(window),
                Argument::U64(self.planes.block_bytes as u64),
                Argument::U64(self.planes.keys_at as u64),
                Argument::U64(self.planes.values_at as u64),
                Argument::F32(scale(shape)),
            ],
        };
        if self.parts == 1 {
            return Ok(vec![attend]);
        }
        let merge = Launch {
            kernel: "merge_parts".into(),
            grid: [shape.heads as u32, rows, 1],
            threads: PART_THREADS as u32,
            shared_bytes: 0,
            arguments: vec![
                Argument::Pointer(self.out),
                Argument::Pointer(self.partials.values),
                Argument::Pointer(self.partials.stats),
                Argument::Pointer(self.table_of),
                Argument::Pointer(self.positions),
                Argument::U32(parts),
                Argument::U32(window),
            ],
        };
        Ok(vec![attend, merge])
    }
}

impl AttendTiles {
    /// Errors: more than a kernel counts.
    pub fn launch(&self, shape: &KernelShape) -> Result<Launch, LaunchError> {
        const ATTEND: &str = "attend_tiles";
        let sizes = Sizes::of(shape);
        Ok(Launch {
            kernel: ATTEND.into(),
            grid: [count(ATTEND, "tiles", self.count)?, shape.kv_heads as u32, 1],
            threads: sizes.tile_threads as u32,
            shared_bytes: sizes.tile_shared_bytes as u32,
            arguments: vec![
                Argument::Pointer(self.out),
                Argument::Pointer(self.queries),
                Argument::Pointer(self.planes.pool),
                Argument::Pointer(self.tables.address),
                Argument::Pointer(self.tiles),
                Argument::U32(count(ATTEND, "blocks of a table", self.tables.table_blocks)?),
                Argument::U32(window(ATTEND, self.window)?),
                Argument::U64(self.planes.block_bytes as u64),
                Argument::U64(self.planes.keys_at as u64),
                Argument::U64(self.planes.values_at as u64),
                Argument::F32(scale(shape)),
            ],
        })
    }
}

/// 0 is no window to the kernels.
fn window(kernel: &'static str, window: Option<usize>) -> Result<u32, LaunchError> {
    count(kernel, "tokens of the window", window.map_or(0, |window| window.max(1)))
}

/// As the CPU's kernels round it.
fn scale(shape: &KernelShape) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Dtype;
    use crate::shape::tests::llama_8b;

    fn rows(rows: usize, parts: usize) -> AttendRows {
        AttendRows {
            rows,
            parts,
            window: None,
            planes: KvPlanes { pool: 0, block_bytes: 0, keys_at: 0, values_at: 0 },
            tables: Tables { address: 0, table_blocks: 0 },
            table_of: 0,
            positions: 0,
            queries: 0,
            out: 0,
            partials: Partials { values: 0, stats: 0 },
        }
    }

    #[test]
    fn rows_have_a_block_of_threads_for_each_part_and_kv_head() {
        let launches = rows(3, 5).launches(&llama_8b()).unwrap();
        assert_eq!(launches[0].grid, [5, 8, 3]);
        assert_eq!(launches[0].threads, 128);
        // Keys of three chunks, and of four queries 512 scores, 8 scales and their largest score.
        let scores = 4 * (512 + 8 + 8 + 1) * 4;
        assert_eq!(launches[0].shared_bytes, 3 * 128 * (64 + 8) * 2 + scores);
        assert_eq!(launches[1].grid, [32, 3, 1]);
        assert_eq!(rows(3, 1).launches(&llama_8b()).unwrap().len(), 1, "nothing to merge");
        // Without tensor cores, more than eight queries are two blocks of threads.
        let wide = KernelShape { heads: 36, kv_heads: 3, ..llama_8b() };
        assert_eq!(rows(1, 1).launches(&wide).unwrap()[0].grid, [1, 3, 1]);
        let wide = KernelShape { kv: Dtype::F32, ..wide };
        let launch = &rows(1, 1).launches(&wide).unwrap()[0];
        assert_eq!(launch.grid, [1, 6, 1]);
        // Eight queries: 128 elements, 512 weights, 8 scales and 2 numbers of each.
        assert_eq!(launch.shared_bytes, 4 * 8 * (128 + 512 + 8 + 2));
        assert!(rows(65_536, 1).launches(&llama_8b()).is_err());
    }

    #[test]
    fn parts_are_counted_as_far_as_they_are_seen() {
        let check = |position, window, expected| {
            assert_eq!(parts_of(position, window), expected, "{position} {window:?}");
        };
        check(0, None, 1);
        check(511, None, 1);
        check(512, None, 2);
        check(5_000, None, 10);
        check(5_000, Some(1), 1);
        check(5_000, Some(500), 2);
        check(1_023, Some(512), 1);
        check(1_024, Some(512), 2);
    }
}
