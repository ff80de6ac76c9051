//! Activations in 8 bits, in the order in which kernels read them.

use multiversion::multiversion;

use super::{CODE_MAX, GROUP};
use crate::kernels::Compute;

/// Rows that kernels compute together, where there are as many.
pub const TILE_ROWS_MAX: usize = 12;
/// Up to so many are computed together whatever their number.
pub const ANY_ROWS_MAX: usize = 8;

/// Fours of codes of a group, and the numbers behind them.
const FOURS: usize = GROUP / 4;
const FIELDS: usize = FOURS + 5;

/// Fewer rows are not split over threads.
const PARALLEL_ROWS_MIN: usize = 4 * TILE_ROWS_MAX;

/// Rows of activations, in tiles; each group of 32 elements has a scale of its own.
pub struct Activations {
    groups: usize,
    rows: usize,
    /// Of each tile, `[groups, FIELDS, rows of the tile]`.
    fields: Vec<i32>,
}

/// Rows that are computed together.
#[derive(Clone, Copy)]
pub struct ActivationTile<'a> {
    /// Of the first one.
    pub first_row: usize,
    /// How many.
    pub rows: usize,
    fields: &'a [i32],
}

/// A group of one row.
#[derive(Clone, Copy)]
struct Group {
    codes: [i8; GROUP],
    scale: f32,
    /// The sum of the elements.
    sum: f32,
    /// What corrects sums of products with codes whose zero is 128, as they are not signed: of the first
    /// half, of the second. See `QuantFormat::correction`.
    offsets: [i32; 2],
}

impl Activations {
    /// Rounds `x` (`[rows, inputs]`). `inputs` is a multiple of 32.
    pub fn quantize(compute: &Compute, x: &[f32], inputs: usize) -> Self {
        let (groups, rows) = (inputs / GROUP, x.len() / inputs);
        let mut fields = vec![0; rows * groups * FIELDS];
        let round = |x: &[f32], fields: &mut [i32]| {
            let mut first = 0;
            for count in tiles_of(x.len() / inputs) {
                let x = &x[first * inputs..][..count * inputs];
                let fields = &mut fields[first * groups * FIELDS..][..count * groups * FIELDS];
                quantize_tile(x, count, fields);
                first += count;
            }
        };
        match rows < PARALLEL_ROWS_MIN {
            true => round(x, &mut fields),
            false => {
                let of_tile = TILE_ROWS_MAX * groups * FIELDS;
                compute.split_chunks((x, TILE_ROWS_MAX * inputs), (&mut fields, of_tile), round);
            }
        }
        Self { groups, rows, fields }
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// All rows, in order.
    pub fn tiles(&self) -> impl Iterator<Item = ActivationTile<'_>> {
        let mut first_row = 0;
        tiles_of(self.rows).map(move |rows| {
            let row_len = self.groups * FIELDS;
            let fields = &self.fields[first_row * row_len..][..rows * row_len];
            let tile = ActivationTile { first_row, rows, fields };
            first_row += rows;
            tile
        })
    }
}

/// Sizes of the tiles of so many rows.
fn tiles_of(rows: usize) -> impl Iterator<Item = usize> {
    let (twelves, rest) = (rows / TILE_ROWS_MAX, rows % TILE_ROWS_MAX);
    let (eight, rest) = match rest > ANY_ROWS_MAX {
        true => (Some(ANY_ROWS_MAX), rest - ANY_ROWS_MAX),
        false => (None, rest),
    };
    let rest = (rest > 0).then_some(rest);
    std::iter::repeat_n(TILE_ROWS_MAX, twelves).chain(eight).chain(rest)
}

impl ActivationTile<'_> {
    /// The fields of a group: `[FIELDS, rows]`.
    #[inline(always)]
    pub fn group(&self, group: usize) -> &[i32] {
        let len = FIELDS * self.rows;
        &self.fields[group * len..][..len]
    }

    /// Where the codes of four elements of all rows are in a group's fields.
    #[inline(always)]
    pub const fn four(rows: usize, four: usize) -> usize {
        four * rows
    }

    /// Where the scales of all rows are, as bits.
    #[inline(always)]
    pub const fn scale(rows: usize) -> usize {
        FOURS * rows
    }

    /// Where the sums of the elements of all rows are, as bits.
    #[inline(always)]
    pub const fn sum(rows: usize) -> usize {
        (FOURS + 1) * rows
    }

    /// Where the offsets of both halves together are.
    #[inline(always)]
    pub const fn offset(rows: usize) -> usize {
        (FOURS + 2) * rows
    }

    /// Where those of a half are.
    #[inline(always)]
    pub const fn half_offset(rows: usize, half: usize) -> usize {
        (FOURS + 3 + half) * rows
    }
}

/// Rounds some rows (`[rows, inputs]`) into a tile's fields.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
fn quantize_tile(x: &[f32], rows: usize, fields: &mut [i32]) {
    for (row, x) in x.chunks_exact(x.len() / rows).enumerate() {
        let groups = x.as_chunks::<GROUP>().0.iter().zip(fields.chunks_exact_mut(FIELDS * rows));
        for (x, fields) in groups {
            let group = quantize_group(x);
            for (four, codes) in group.codes.as_chunks::<4>().0.iter().enumerate() {
                let at = ActivationTile::four(rows, four) + row;
                fields[at] = i32::from_le_bytes(codes.map(|code| code as u8));
            }
            fields[ActivationTile::scale(rows) + row] = group.scale.to_bits() as i32;
            fields[ActivationTile::sum(rows) + row] = group.sum.to_bits() as i32;
            fields[ActivationTile::offset(rows) + row] = group.offsets[0] + group.offsets[1];
            for half in 0..2 {
                fields[ActivationTile::half_offset(rows, half) + row] = group.offsets[half];
            }
        }
    }
}

#[inline(always)]
fn quantize_group(x: &[f32; GROUP]) -> Group {
    // Compared as integers: of what is not negative the order is the same, and what is not a number is
    // the largest.
    let largest = x.iter().fold(0, |largest, value| value.abs().to_bits().max(largest));
    let largest = f32::from_bits(largest);
    let inverse = if largest > 0.0 { CODE_MAX / largest } else { 0.0 };
    let codes: [i8; GROUP] = std::array::from_fn(|k| rounded(x[k] * inverse));
    let sum_of = |half: &[i8]| half.iter().map(|code| i32::from(*code)).sum::<i32>();
    let sums = [sum_of(&codes[..GROUP / 2]), sum_of(&codes[GROUP / 2..])];
    let scale = largest / CODE_MAX;
    let sum = (sums[0] + sums[1]) as f32 * scale;
    Group { codes, scale, sum, offsets: sums.map(|sum| -128 * sum) }
}

/// The nearest integer, ties to even, of a small number: added to 1.5 * 2^23 it is the last bits.
#[inline(always)]
fn rounded(value: f32) -> i8 {
    (value + 12_582_912.0).to_bits() as i8
}
