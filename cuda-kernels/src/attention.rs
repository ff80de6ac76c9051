//! How attention is launched: by rows that have little to share (decode, drafts), or by tiles of rows
//! of one sequence (chunks of a prompt). A row's bits are the same by both, and those of the engine's
//! CPU kernels; `kernels/attention.cu` says in which order they are computed.

use crate::launch::{Argument, Launch, LaunchError, along_yz, count};
use crate::shape::{KernelShape, UnsupportedShape};

/// Positions that are reduced together before they are merged with those before.
pub const PART_TOKENS: usize = 512;
const CHUNK_TOKENS: usize = 64;
const PART_THREADS: usize = 128;
/// Queries that one block of `attend_parts` takes.
const PART_QUERIES_MAX: usize = 8;

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

/// Consecutive rows of the batch that are consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its row of the table.
    pub table: u32,
    /// Position of the first token.
    pub start: u32,
    /// How many tokens.
    pub rows: u32,
}

/// What one block of threads takes of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Tile {
    /// First row in the batch.
    pub row: u32,
    /// How many.
    pub rows: u32,
    /// Position of the first.
    pub start: u32,
    /// The sequence's row of the table.
    pub table: u32,
}

impl Tile {
    /// As the kernel reads it.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let numbers = [self.row, self.rows, self.start, self.table];
        for (to, number) in bytes.chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

/// Parts that a row at `position` sees.
pub fn parts_of(position: usize, window: Option<usize>) -> usize {
    let first_seen = window.map_or(0, |window| (position + 1).saturating_sub(window.max(1)));
    position / PART_TOKENS - first_seen / PART_TOKENS + 1
}

/// Cuts spans, whose rows follow each other in the batch, into tiles. Those that see most come first,
/// so that no long one is left at the end.
pub fn tiles(shape: &KernelShape, spans: &[Span]) -> Vec<Tile> {
    let tile_rows = (tile_queries(shape) / shape.group()) as u32;
    let (mut tiles, mut row) = (Vec::new(), 0);
    for span in spans {
        for offset in (0..span.rows).step_by(tile_rows as usize) {
            let rows = tile_rows.min(span.rows - offset);
            let start = span.start + offset;
            tiles.push(Tile { row: row + offset, rows, start, table: span.table });
        }
        row += span.rows;
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile.start));
    tiles
}

/// Queries of a tile: as many as make reading keys and values cheap, and shared memory has room for.
pub(crate) fn tile_queries(shape: &KernelShape) -> usize {
    let fits = |queries: &usize| tile_shared_bytes(shape, *queries) <= shape.shared_bytes_max;
    [64, 32].into_iter().find(fits).unwrap_or(16)
}

pub(crate) fn check_shared_bytes(shape: &KernelShape) -> Result<(), UnsupportedShape> {
    let needed = tile_shared_bytes(shape, 16).max(part_shared_bytes(shape));
    let available = shape.shared_bytes_max;
    if needed > available {
        return Err(UnsupportedShape::SharedMemory { available, needed });
    }
    Ok(())
}

fn tile_shared_bytes(shape: &KernelShape, queries: usize) -> usize {
    let staged = shape.head_dim * (queries + CHUNK_TOKENS);
    let weights = CHUNK_TOKENS * (queries + 4);
    size_of::<f32>() * (staged + weights + 5 * queries)
}

fn part_queries(shape: &KernelShape) -> usize {
    shape.group().min(PART_QUERIES_MAX)
}

fn part_shared_bytes(shape: &KernelShape) -> usize {
    let queries = part_queries(shape);
    let sets = (PART_THREADS / (shape.head_dim / 2)).min(queries);
    let stride = queries.next_multiple_of(queries.div_ceil(sets)).next_multiple_of(4);
    let chunks = PART_TOKENS / CHUNK_TOKENS;
    size_of::<f32>() * stride * (shape.head_dim + PART_TOKENS + chunks + 2)
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
        let subgroups = shape.group().div_ceil(part_queries(shape));
        let parts = count(ATTEND, "parts", self.parts)?;
        let window = window(ATTEND, self.window)?;
        let attend = Launch {
            kernel: ATTEND.into(),
            grid: [parts, (shape.kv_heads * subgroups) as u32, rows],
            threads: PART_THREADS as u32,
            shared_bytes: part_shared_bytes(shape) as u32,
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
        let queries = tile_queries(shape);
        Ok(Launch {
            kernel: ATTEND.into(),
            grid: [count(ATTEND, "tiles", self.count)?, shape.kv_heads as u32, 1],
            threads: 4 * queries as u32,
            shared_bytes: tile_shared_bytes(shape, queries) as u32,
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
        // Four queries: 128 elements, 512 weights, 8 scales and 2 numbers of each.
        assert_eq!(launches[0].shared_bytes, 4 * 4 * (128 + 512 + 8 + 2));
        assert_eq!(launches[1].grid, [32, 3, 1]);
        assert_eq!(rows(3, 1).launches(&llama_8b()).unwrap().len(), 1, "nothing to merge");
        // More than eight queries are two blocks of threads.
        let wide = KernelShape { heads: 36, kv_heads: 3, ..llama_8b() };
        assert_eq!(rows(1, 1).launches(&wide).unwrap()[0].grid, [1, 6, 1]);
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

    #[test]
    fn tiles_are_as_large_as_shared_memory_allows() {
        let check = |head_dim, shared_bytes_max, expected| {
            let shape = KernelShape { head_dim, shared_bytes_max, ..llama_8b() };
            assert_eq!(shape.check(), Ok(()));
            assert_eq!(tile_queries(&shape), expected, "{head_dim} {shared_bytes_max}");
            assert!(tile_shared_bytes(&shape, expected) <= shared_bytes_max);
        };
        check(128, 227 << 10, 64);
        check(128, 99 << 10, 64);
        check(256, 227 << 10, 64);
        check(256, 163 << 10, 64);
        check(256, 99 << 10, 16);
        check(192, 99 << 10, 32);
    }

    #[test]
    fn tiles_cover_each_row_once_and_the_longest_come_first() {
        let shape = KernelShape { heads: 14, kv_heads: 2, ..llama_8b() };
        let spans =
            [Span { table: 4, start: 0, rows: 20 }, Span { table: 2, start: 1_000, rows: 1 }];
        let tile = |row, rows, start, table| Tile { row, rows, start, table };
        let expected =
            [tile(20, 1, 1_000, 2), tile(18, 2, 18, 4), tile(9, 9, 9, 4), tile(0, 9, 0, 4)];
        assert_eq!(tiles(&shape, &spans), expected);
    }
}
