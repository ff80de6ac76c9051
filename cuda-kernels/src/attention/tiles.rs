//! What a block of threads of `attend_tiles` takes.

use super::sizes::Sizes;
use crate::shape::KernelShape;

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

/// Cuts spans, whose rows follow each other in the batch, into tiles. Those that see most come first,
/// so that no long one is left at the end.
pub fn tiles(shape: &KernelShape, spans: &[Span]) -> Vec<Tile> {
    let tile_rows = (Sizes::of(shape).tile_queries / shape.group()) as u32;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Dtype;
    use crate::shape::tests::llama_8b;

    #[test]
    fn tiles_cover_each_row_once_and_the_longest_come_first() {
        let shape = KernelShape { heads: 14, kv_heads: 2, kv: Dtype::F32, ..llama_8b() };
        let spans =
            [Span { table: 4, start: 0, rows: 20 }, Span { table: 2, start: 1_000, rows: 1 }];
        let tile = |row, rows, start, table| Tile { row, rows, start, table };
        let expected =
            [tile(20, 1, 1_000, 2), tile(18, 2, 18, 4), tile(9, 9, 9, 4), tile(0, 9, 0, 4)];
        assert_eq!(tiles(&shape, &spans), expected);
    }
}
