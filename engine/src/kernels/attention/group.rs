//! Up to eight queries against a chunk, each in the order that it has alone.

use std::ops::Range;

use super::chunk::{CHUNK_TOKENS, Slab, Slabs};
use crate::kernels::Element;
use crate::kernels::math::{LANES, exp, sum_lanes};
use crate::kernels::simd::{Simd, Work, lanes_at};

/// Queries of a group at most.
pub const GROUP_MAX: usize = 8;

/// Weights, and scores before: of some queries, `[queries, positions of the chunk]`.
type Weights = [[f32; CHUNK_TOKENS]];

/// Some queries, and what they have so far.
pub struct Group<'a> {
    /// `[head_dim, queries]`, scaled.
    pub queries: &'a [f32],
    /// Which positions of the chunk each of them sees.
    pub seen: [Range<usize>; GROUP_MAX],
    /// The largest score of each.
    pub maxima: &'a mut [f32],
    /// The sum of each one's weights, relative to the largest score.
    pub sums: &'a mut [f32],
    /// Values added with those weights: `[queries, head_dim]`.
    pub values: &'a mut [f32],
}

/// Each query takes in the positions of the chunk that it sees.
#[inline(always)]
pub fn attend_group<S: Simd, X: Element>(simd: S, slabs: &Slabs<'_, X>, group: Group<'_>) {
    let count = group.maxima.len();
    let head_dim = group.values.len() / count;
    let all_seen = &group.seen[..count];
    let start = all_seen.iter().map(|seen| seen.start).min().unwrap_or(0);
    let end = all_seen.iter().map(|seen| seen.end).max().unwrap_or(0);
    if start >= end {
        return;
    }
    let mut weights = [[0.0; CHUNK_TOKENS]; GROUP_MAX];
    let weights = &mut weights[..count];
    let range = start / LANES..end.div_ceil(LANES);
    simd.run(Score { slabs, queries: group.queries, range, scores: weights });
    for (query, seen) in all_seen.iter().enumerate().filter(|(_, seen)| !seen.is_empty()) {
        simd.run(Soften {
            seen: seen.clone(),
            scores: &mut weights[query],
            max: &mut group.maxima[query],
            sum: &mut group.sums[query],
            values: &mut group.values[query * head_dim..][..head_dim],
        });
    }
    // What all see is added together, what only some see to each alone, before and behind.
    let start = all_seen.iter().map(|seen| seen.start).max().unwrap_or(0);
    let end = all_seen.iter().map(|seen| seen.end).min().unwrap_or(0).max(start);
    let mut add = |queries: Range<usize>, positions: Range<usize>| {
        if !positions.is_empty() {
            let values = &mut group.values[queries.start * head_dim..queries.end * head_dim];
            simd.run(AddValues { slabs, positions, weights: &weights[queries], values });
        }
    };
    for (query, seen) in all_seen.iter().enumerate() {
        add(query..query + 1, seen.start..seen.end.min(start));
    }
    add(0..count, start..end);
    for (query, seen) in all_seen.iter().enumerate() {
        add(query..query + 1, seen.start.max(end)..seen.end);
    }
}

/// `scores[n][position] = sum over d of queries[d, n] keys[d, position]`, for some slabs.
struct Score<'a, X> {
    slabs: &'a Slabs<'a, X>,
    queries: &'a [f32],
    range: Range<usize>,
    scores: &'a mut Weights,
}

impl<X: Element> Work for Score<'_, X> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.scores.len() {
            1 => score::<S, X, 1>(simd, self),
            2 => score::<S, X, 2>(simd, self),
            3 => score::<S, X, 3>(simd, self),
            4 => score::<S, X, 4>(simd, self),
            5 if S::IS_WIDE => score::<S, X, 5>(simd, self),
            6 if S::IS_WIDE => score::<S, X, 6>(simd, self),
            7 if S::IS_WIDE => score::<S, X, 7>(simd, self),
            8 if S::IS_WIDE => score::<S, X, 8>(simd, self),
            _ => unreachable!("groups have at most 8 queries, where registers are few 4"),
        }
    }
}

#[inline(always)]
fn score<S: Simd, X: Element, const N: usize>(simd: S, work: Score<'_, X>) {
    let Score { slabs, queries, range, scores } = work;
    let mut slab = range.start;
    while slab < range.end {
        // Few queries have too few sums at once to hide how long one addition takes.
        match range.end - slab {
            4.. if N == 1 => {
                score_slabs::<S, X, N, 4>(simd, slabs, slab, queries, scores);
                slab += 4;
            }
            2.. if 1 < N && N <= 3 => {
                score_slabs::<S, X, N, 2>(simd, slabs, slab, queries, scores);
                slab += 2;
            }
            _ => {
                score_slabs::<S, X, N, 1>(simd, slabs, slab, queries, scores);
                slab += 1;
            }
        }
    }
}

/// The scores of `SLABS` slabs from the `first` on.
#[inline(always)]
fn score_slabs<S: Simd, X: Element, const N: usize, const SLABS: usize>(
    simd: S,
    slabs: &Slabs<'_, X>,
    first: usize,
    queries: &[f32],
    scores: &mut Weights,
) {
    let queries = queries.as_chunks::<N>().0;
    let slabs = &slabs[first..first + SLABS];
    for Slab { keys, stride, .. } in slabs {
        assert!(keys.len() + stride >= queries.len() * stride + LANES, "keys of all elements");
    }
    let mut sums = [[simd.splat(0.0); N]; SLABS];
    for (d, query) in queries.iter().enumerate() {
        for slab in 0..SLABS {
            let Slab { keys, stride, .. } = slabs[slab];
            // SAFETY: asserted above.
            let keys = X::load(simd, unsafe { lanes_at(keys, d * stride) });
            if !X::IS_F32 {
                simd.prefetch(slabs[slab].ahead.keys.wrapping_add(d * stride));
            }
            for n in 0..N {
                sums[slab][n] = simd.mul_add(simd.splat(query[n]), keys, sums[slab][n]);
            }
        }
    }
    for slab in 0..SLABS {
        for n in 0..N {
            let scores = scores[n].as_chunks_mut::<LANES>().0;
            simd.store(sums[slab][n], &mut scores[first + slab]);
        }
    }
}

/// Turns a query's scores into weights relative to the largest score so far, and scales what it has
/// so far. Positions that are not seen have no weight.
struct Soften<'a> {
    seen: Range<usize>,
    scores: &'a mut [f32; CHUNK_TOKENS],
    max: &'a mut f32,
    sum: &'a mut f32,
    values: &'a mut [f32],
}

impl Work for Soften<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { seen, scores, max, sum, values } = self;
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let new_max = largest(simd, scores).max(*max);
        for score in scores.iter_mut() {
            *score = exp(*score - new_max);
        }
        let mut sums = [0.0; LANES];
        simd.store(add_up(simd, scores), &mut sums);
        // Later chunks seldom have a larger score.
        let rescale = if *max == new_max { 1.0 } else { exp(*max - new_max) };
        *sum = *sum * rescale + sum_lanes(sums);
        *max = new_max;
        if rescale != 1.0 {
            for value in values {
                *value *= rescale;
            }
        }
    }
}

#[inline(always)]
fn largest<S: Simd>(simd: S, scores: &[f32; CHUNK_TOKENS]) -> f32 {
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for scores in scores.as_chunks::<LANES>().0 {
        largest = simd.max(simd.load(scores), largest);
    }
    let mut lanes = [0.0; LANES];
    simd.store(largest, &mut lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = lanes[lane + width];
            lanes[lane] = if other > lanes[lane] { other } else { lanes[lane] };
        }
        width /= 2;
    }
    lanes[0]
}

/// Weights of all slabs, lane by lane.
#[inline(always)]
fn add_up<S: Simd>(simd: S, weights: &[f32; CHUNK_TOKENS]) -> S::Lanes {
    let (one, mut sums) = (simd.splat(1.0), simd.splat(0.0));
    for weights in weights.as_chunks::<LANES>().0 {
        sums = simd.mul_add(simd.load(weights), one, sums);
    }
    sums
}

/// `values[n, d] += sum over positions of weights[n][position] values[position, d]`, one position
/// after the other.
struct AddValues<'a, X> {
    slabs: &'a Slabs<'a, X>,
    positions: Range<usize>,
    weights: &'a Weights,
    values: &'a mut [f32],
}

impl<X: Element> Work for AddValues<'_, X> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.weights.len() {
            1 => add_values::<S, X, 1>(simd, self),
            2 => add_values::<S, X, 2>(simd, self),
            3 => add_values::<S, X, 3>(simd, self),
            4 => add_values::<S, X, 4>(simd, self),
            5 if S::IS_WIDE => add_values::<S, X, 5>(simd, self),
            6 if S::IS_WIDE => add_values::<S, X, 6>(simd, self),
            7 if S::IS_WIDE => add_values::<S, X, 7>(simd, self),
            8 if S::IS_WIDE => add_values::<S, X, 8>(simd, self),
            _ => unreachable!("groups have at most 8 queries, where registers are few 4"),
        }
    }
}

#[inline(always)]
fn add_values<S: Simd, X: Element, const N: usize>(simd: S, mut work: AddValues<'_, X>) {
    let head_dim = work.values.len() / N;
    // As many sums at once as there are registers for.
    let registers = if S::IS_WIDE { 24 } else { 4 };
    let mut d = 0;
    while 4 * N <= registers && d + 4 * LANES <= head_dim {
        add_columns::<S, X, N, 4>(simd, &mut work, d);
        d += 4 * LANES;
    }
    while 4 * N > registers && 2 * N <= registers && d + 2 * LANES <= head_dim {
        add_columns::<S, X, N, 2>(simd, &mut work, d);
        d += 2 * LANES;
    }
    while d + LANES <= head_dim {
        add_columns::<S, X, N, 1>(simd, &mut work, d);
        d += LANES;
    }
    if d == head_dim {
        return;
    }
    let AddValues { slabs, positions, weights, values } = work;
    for (values, weights) in values.chunks_exact_mut(head_dim).zip(weights) {
        for position in positions.clone() {
            let from = &slabs[position / LANES].values[position % LANES * head_dim..][..head_dim];
            for (value, from) in values[d..].iter_mut().zip(&from[d..]) {
                *value = weights[position].mul_add(from.widen(), *value);
            }
        }
    }
}

/// `add_values` of `16 * WIDTH` elements from d on.
#[inline(always)]
fn add_columns<S: Simd, X: Element, const N: usize, const WIDTH: usize>(
    simd: S,
    work: &mut AddValues<'_, X>,
    d: usize,
) {
    let AddValues { slabs, positions, weights, values } = work;
    let head_dim = values.len() / N;
    let mut sums = [[simd.splat(0.0); WIDTH]; N];
    for n in 0..N {
        let values = values[n * head_dim + d..][..WIDTH * LANES].as_chunks::<LANES>().0;
        for i in 0..WIDTH {
            sums[n][i] = simd.load(&values[i]);
        }
    }
    for slab in positions.start / LANES..positions.end.div_ceil(LANES) {
        let slab_start = slab * LANES;
        let from = slabs[slab].values;
        assert!(from.len() >= LANES * head_dim, "values of all positions");
        let end = positions.end.min(slab_start + LANES);
        for position in positions.start.max(slab_start)..end {
            let row = (position - slab_start) * head_dim + d;
            let mut from_lanes = [simd.splat(0.0); WIDTH];
            for (i, lanes) in from_lanes.iter_mut().enumerate() {
                if !X::IS_F32 && i % 2 == 0 {
                    simd.prefetch(slabs[slab].ahead.values.wrapping_add(row + i * LANES));
                }
                // SAFETY: asserted above; d + 16 * WIDTH is at most head_dim.
                *lanes = X::load(simd, unsafe { lanes_at(from, row + i * LANES) });
            }
            for n in 0..N {
                let weight = simd.splat(weights[n][position]);
                for i in 0..WIDTH {
                    sums[n][i] = simd.mul_add(weight, from_lanes[i], sums[n][i]);
                }
            }
        }
    }
    for n in 0..N {
        let values = values[n * head_dim + d..][..WIDTH * LANES].as_chunks_mut::<LANES>().0;
        for i in 0..WIDTH {
            simd.store(sums[n][i], &mut values[i]);
        }
    }
}
