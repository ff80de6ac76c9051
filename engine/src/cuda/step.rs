//! What a step is, as kernels read it: numbers of rows and sequences, packed into one copy.

use cuda_kernels::{
    KernelShape, NOBODY, PART_TOKENS, SAMPLING_BYTES, Span as TileSpan, Tile, parts_of, tiles,
};
use kv_transfer::KvLayout;

use crate::model::Span;

/// Spans of so many rows attend row by row; longer ones in tiles, which read keys and values once for
/// many rows. A row's bits are the same either way.
const SHORT_SPAN_ROWS: usize = 8;
/// A captured step has room for contexts of some multiples of so many tokens.
const CONTEXT_TOKENS_MIN: usize = 2 * PART_TOKENS;
const ALIGNMENT: usize = 16;

/// What of a step decides which work it is: equal ones differ in numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Rows, some of which may be padding.
    pub rows: usize,
    /// Of these, the first ones attend row by row.
    pub single_rows: usize,
    /// Tiles of the others.
    pub tiles: usize,
    /// Sequences, some of which may be padding.
    pub sequences: usize,
    /// Tokens that the longest context may have, up to its end of a part.
    pub context_tokens: usize,
    /// After how many rows logits are wanted.
    pub wanted: usize,
    /// Whether these are all rows, in order.
    pub wants_all: bool,
}

/// Where each array begins in the packed bytes.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// u32 `[rows]`
    pub tokens: usize,
    /// u32 `[rows]`
    pub positions: usize,
    /// u32 `[rows]`: block * block_size + slot, or `NOBODY`.
    pub slots: usize,
    /// u32 `[single_rows]`: each one's row of `tables`, or `NOBODY`.
    pub table_of: usize,
    /// u32 `[sequences, table_blocks]`
    pub tables: usize,
    /// `[tiles]`
    pub tiles: usize,
    /// u32 `[wanted]`: which rows.
    pub wanted: usize,
    /// 24 bytes each, `[wanted]`.
    pub samplings: usize,
    /// Of all.
    pub bytes: usize,
}

/// A step, and the order in which it takes spans.
pub struct Step {
    /// What it is.
    pub shape: StepShape,
    /// Where its arrays are.
    pub offsets: Offsets,
    /// The arrays, without samplings.
    pub bytes: Vec<u8>,
    /// The spans by their index, in the order of their rows: those with few come first.
    pub order: Vec<usize>,
}

impl StepShape {
    /// Blocks of a row of the tables.
    pub fn table_blocks(&self, block_size: usize) -> usize {
        self.context_tokens.div_ceil(block_size)
    }

    /// As many parts as the row that sees most has.
    pub fn parts(&self) -> usize {
        self.context_tokens / PART_TOKENS
    }

    /// Where its arrays are.
    pub fn offsets(&self, block_size: usize) -> Offsets {
        let mut end = 0;
        let mut place = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            at
        };
        let mut numbers = |count: usize| place(count * size_of::<u32>());
        let (tokens, positions, slots) =
            (numbers(self.rows), numbers(self.rows), numbers(self.rows));
        let table_of = numbers(self.single_rows);
        let tables = numbers(self.sequences * self.table_blocks(block_size));
        let wanted = numbers(self.wanted);
        let tiles = place(self.tiles * size_of::<Tile>());
        let samplings = place(self.wanted * SAMPLING_BYTES);
        Offsets { tokens, positions, slots, table_of, tables, tiles, wanted, samplings, bytes: end }
    }

    /// Whether it is one of the few that come again and again: tokens that follow one by one, and all
    /// logits.
    pub fn is_decode(&self) -> bool {
        self.tiles == 0 && self.wants_all
    }
}

impl Step {
    /// Of some spans.
    pub fn of(spans: &[Span<'_>], layout: &KvLayout, kernels: &KernelShape) -> Self {
        let mut order: Vec<usize> = (0..spans.len()).collect();
        order.sort_by_key(|index| spans[*index].tokens.len() > SHORT_SPAN_ROWS);
        let ordered: Vec<&Span<'_>> = order.iter().map(|index| &spans[*index]).collect();
        let singles = ordered.iter().take_while(|span| span.tokens.len() <= SHORT_SPAN_ROWS);
        let (mut single_rows, mut single_spans) = (0, 0);
        for span in singles {
            single_rows += span.tokens.len();
            single_spans += 1;
        }
        let tile_spans = ordered.iter().enumerate().skip(single_spans);
        let tile_spans: Vec<TileSpan> = tile_spans
            .map(|(table, span)| TileSpan {
                table: table as u32,
                start: span.start as u32,
                rows: span.tokens.len() as u32,
            })
            .collect();
        let mut tiles = tiles(kernels, &tile_spans);
        tiles.iter_mut().for_each(|tile| tile.row += single_rows as u32);

        let rows = ordered.iter().map(|span| span.tokens.len()).sum::<usize>();
        let wanted = ordered.iter().map(|span| span.logits).sum::<usize>();
        let end = ordered.iter().map(|span| span.start + span.tokens.len()).max().unwrap_or(1);
        let mut shape = StepShape {
            rows,
            single_rows,
            tiles: tiles.len(),
            sequences: spans.len(),
            context_tokens: parts_of(end - 1, None) * PART_TOKENS,
            wanted,
            wants_all: wanted == rows,
        };
        if shape.is_decode() {
            shape = shape.rounded_up();
        }
        let offsets = shape.offsets(layout.block_size);
        let mut step = Self { shape, offsets, bytes: vec![0; offsets.bytes], order };
        step.fill(&ordered, layout, &tiles);
        step
    }

    fn fill(&mut self, ordered: &[&Span<'_>], layout: &KvLayout, tiles: &[Tile]) {
        let Offsets { tokens, positions, slots, table_of, tables, wanted, .. } = self.offsets;
        let block_size = layout.block_size;
        let table_blocks = self.shape.table_blocks(block_size);
        let (mut row, mut next_wanted) = (0, 0);
        for (sequence, span) in ordered.iter().enumerate() {
            let rows = span.tokens.len();
            for (offset, token) in span.tokens.iter().enumerate() {
                let position = span.start + offset;
                let block = span.blocks[position / block_size] as usize;
                let slot = block * block_size + position % block_size;
                self.put(tokens, row, *token);
                self.put(positions, row, position as u32);
                self.put(slots, row, slot as u32);
                if row < self.shape.single_rows {
                    self.put(table_of, row, sequence as u32);
                }
                if offset + span.logits >= rows {
                    self.put(wanted, next_wanted, row as u32);
                    next_wanted += 1;
                }
                row += 1;
            }
            let used = layout.blocks_for(span.start + rows);
            for (index, block) in span.blocks[..used].iter().enumerate() {
                self.put(tables, sequence * table_blocks + index, *block);
            }
        }
        for padding in row..self.shape.rows {
            self.put(slots, padding, NOBODY);
            self.put(table_of, padding, NOBODY);
        }
        for padding in next_wanted..self.shape.wanted {
            self.put(wanted, padding, padding as u32);
        }
        let at = self.offsets.tiles;
        let bytes = tiles.iter().flat_map(|tile| tile.to_bytes());
        for (to, byte) in self.bytes[at..].iter_mut().zip(bytes) {
            *to = byte;
        }
    }

    fn put(&mut self, array: usize, index: usize, number: u32) {
        let at = array + index * size_of::<u32>();
        self.bytes[at..at + size_of::<u32>()].copy_from_slice(&number.to_ne_bytes());
    }
}

impl StepShape {
    /// With padding, so that few shapes come up.
    fn rounded_up(self) -> Self {
        let rounded = |count: usize| match count {
            ..=8 => count.next_power_of_two(),
            9..=64 => count.next_multiple_of(8),
            _ => count.next_multiple_of(32),
        };
        let rows = rounded(self.rows);
        let context_tokens = self.context_tokens.max(CONTEXT_TOKENS_MIN).next_power_of_two();
        Self {
            rows,
            single_rows: rows,
            sequences: rounded(self.sequences),
            context_tokens,
            wanted: rows,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_kernels::Dtype;

    const KERNELS: KernelShape = KernelShape {
        head_dim: 64,
        heads: 4,
        kv_heads: 2,
        block_size: 4,
        kv: Dtype::Bf16,
        activations: Dtype::Bf16,
        weights: Dtype::Bf16,
        neighbours: false,
        shared_bytes_max: 99 << 10,
    };

    fn layout() -> KvLayout {
        KvLayout {
            numerics_id: String::new(),
            block_size: 4,
            layers: 1,
            kv_heads: 2,
            head_dim: 64,
            element_bytes: 2,
        }
    }

    fn numbers(step: &Step, at: usize, count: usize) -> Vec<u32> {
        let bytes = &step.bytes[at..at + 4 * count];
        bytes.as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect()
    }

    #[test]
    fn decode_steps_are_padded_to_a_few_shapes() {
        let span =
            |token: &'static [u32], start, blocks| Span { tokens: token, start, blocks, logits: 1 };
        let spans = [span(&[7], 5, &[3, 1]), span(&[8], 0, &[2]), span(&[9], 8, &[4, 5, 6])];
        let step = Step::of(&spans, &layout(), &KERNELS);
        let shape = step.shape;
        assert_eq!((shape.rows, shape.single_rows, shape.wanted, shape.tiles), (4, 4, 4, 0));
        assert_eq!((shape.context_tokens, shape.parts()), (1024, 2));
        let Offsets { tokens, positions, slots, table_of, tables, .. } = step.offsets;
        assert_eq!(numbers(&step, tokens, 4), [7, 8, 9, 0]);
        assert_eq!(numbers(&step, positions, 3), [5, 0, 8]);
        assert_eq!(numbers(&step, slots, 4), [5, 8, 24, NOBODY]);
        assert_eq!(numbers(&step, table_of, 4), [0, 1, 2, NOBODY]);
        assert_eq!(numbers(&step, tables + 2 * 4 * shape.table_blocks(4), 3), [4, 5, 6]);
        let longer = [span(&[7], 5, &[3, 1]), span(&[8], 6, &[2, 8]), span(&[9], 8, &[4, 5, 6])];
        assert_eq!(Step::of(&longer, &layout(), &KERNELS).shape, shape, "the same work");
    }

    #[test]
    fn rows_of_few_come_before_those_of_prompts() {
        const PROMPT: [u32; 20] = [1; 20];
        let spans = [
            Span { tokens: &PROMPT, start: 4, blocks: &[0, 1, 2, 3, 4, 5], logits: 1 },
            Span { tokens: &[5, 6], start: 0, blocks: &[7], logits: 2 },
        ];
        let step = Step::of(&spans, &layout(), &KERNELS);
        assert_eq!(step.order, [1, 0]);
        let shape = step.shape;
        assert_eq!((shape.rows, shape.single_rows, shape.wanted), (22, 2, 3));
        assert!(!shape.is_decode() && shape.tiles == 1);
        assert_eq!(numbers(&step, step.offsets.wanted, 3), [0, 1, 21]);
        // The tile: its first row, how many, the first one's position, its table.
        assert_eq!(numbers(&step, step.offsets.tiles, 4), [2, 20, 4, 1]);
    }
}
