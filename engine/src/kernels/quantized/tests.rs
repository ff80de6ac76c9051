//! Every kernel against plain sums over what the blocks stand for.

use half::f16;

use super::activations::{ActivationTile, Activations};
use super::{GROUP, QuantFormat, QuantizedPath};
use crate::kernels::{Compute, KernelPath, Matrix, WeightData, matmul};

/// A sequence of numbers that looks random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Blocks with any codes and sane scales: `[outputs, inputs]`.
fn weights(format: QuantFormat, outputs: usize, inputs: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..outputs * format.row_bytes(inputs)).map(|_| random.next() as u8).collect();
    let numbers: &[usize] = match format {
        QuantFormat::Q8_0 | QuantFormat::Q4_0 | QuantFormat::Q5_0 => &[0],
        QuantFormat::Q4K => &[0, 2],
        QuantFormat::Q6K => &[208],
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for at in numbers {
            let number = f16::from_f32(random.number() / 100.0).to_le_bytes();
            block[*at..at + 2].copy_from_slice(&number);
        }
    }
    bytes
}

/// What codes of activations stand for, and the scale of each: `[rows][inputs]`.
fn elements(x: &Activations) -> Vec<Vec<(i8, f32)>> {
    let element = |tile: ActivationTile<'_>, row: usize, k: usize| {
        let fields = tile.group(k / GROUP);
        let four = fields[ActivationTile::four(tile.rows, k % GROUP / 4) + row];
        let scale = f32::from_bits(fields[ActivationTile::scale(tile.rows) + row] as u32);
        (four.to_le_bytes()[k % 4] as i8, scale)
    };
    let inputs = x.groups() * GROUP;
    let of_row = |tile, row| (0..inputs).map(|k| element(tile, row, k)).collect();
    x.tiles().flat_map(|tile| (0..tile.rows).map(move |row| of_row(tile, row))).collect()
}

/// Row by row, over the numbers that codes stand for, of weights and of activations.
fn reference(x: &Activations, format: QuantFormat, bytes: &[u8], inputs: usize) -> Vec<f64> {
    let number = |(code, scale): &(i8, f32)| f64::from(*code) * f64::from(*scale);
    let rows: Vec<Vec<f64>> =
        elements(x).iter().map(|row| row.iter().map(number).collect()).collect();
    let mut weights = vec![0.0; inputs];
    let mut products = vec![Vec::new(); rows.len()];
    for bytes in bytes.chunks_exact(format.row_bytes(inputs)) {
        format.dequantize(bytes, &mut weights);
        for (row, products) in rows.iter().zip(&mut products) {
            products.push(row.iter().zip(&weights).map(|(x, w)| x * f64::from(*w)).sum());
        }
    }
    products.concat()
}

fn alone() -> Compute {
    Compute::new(1, KernelPath::Portable).unwrap()
}

fn multiply(
    path: QuantizedPath,
    x: &[f32],
    weights: (QuantFormat, &[u8]),
    shape: [usize; 2],
) -> Vec<f32> {
    let compute = Compute::new(2, KernelPath::detect()).unwrap().with_quantized_path(path);
    let mut y = vec![f32::NAN; x.len() / shape[1] * shape[0]];
    let (format, bytes) = weights;
    let [outputs, inputs] = shape;
    let weight = Matrix { data: WeightData::Quantized { format, bytes }, outputs, inputs };
    matmul(&compute, x, &weight, &mut y);
    y
}

fn check(format: QuantFormat, rows: usize, outputs: usize, inputs: usize, random: &mut Random) {
    let what = format!("{format} [{rows}, {outputs}, {inputs}]");
    let bytes = weights(format, outputs, inputs, random);
    let x: Vec<f32> = (0..rows * inputs).map(|_| random.number() * 3.0).collect();
    let shape = [outputs, inputs];
    let y = multiply(QuantizedPath::detect(), &x, (format, &bytes), shape);
    let expected = reference(&Activations::quantize(&alone(), &x, inputs), format, &bytes, inputs);
    let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    for (found, expected) in y.iter().zip(&expected) {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 1e-5 * largest, "{what}: {found} for {expected}");
    }
    for path in QuantizedPath::ALL.into_iter().filter(|path| path.is_available()) {
        let of_path = multiply(path, &x, (format, &bytes), shape);
        assert_eq!(of_path, y, "{what}: {path:?}");
    }
    for (row, y) in y.chunks_exact(outputs).enumerate() {
        let x = &x[row * inputs..][..inputs];
        let alone = multiply(QuantizedPath::detect(), x, (format, &bytes), shape);
        assert_eq!(alone, y, "{what}: row {row} alone");
    }
}

#[test]
fn products_are_right_equal_on_every_path_and_do_not_depend_on_the_batch() {
    let mut random = Random(1);
    for format in QuantFormat::ALL {
        let block = format.block_elements();
        for (rows, outputs, blocks) in [
            (1, 1, 1),
            (1, 16, 3),
            (2, 37, 2),
            (3, 33, 1),
            (4, 160, 5),
            (5, 16, 2),
            (9, 16, 1),
            (31, 40, 3),
        ] {
            check(format, rows, outputs, blocks * block, &mut random);
        }
    }
}

#[test]
fn large_products_over_two_threads_are_right() {
    check(QuantFormat::Q8_0, 3, 2000, 256, &mut Random(2));
    check(QuantFormat::Q4K, 90, 70, 512, &mut Random(3));
}

#[test]
fn activations_keep_their_largest_and_lose_little() {
    let mut random = Random(4);
    let mut x: Vec<f32> = (0..GROUP * 4).map(|_| random.number()).collect();
    x[5] = -2.5;
    x[GROUP..2 * GROUP].fill(0.0);
    let rounded = Activations::quantize(&alone(), &x, 2 * GROUP);
    let rounded = elements(&rounded);
    assert_eq!((rounded.len(), rounded[0].len()), (2, 2 * GROUP));
    assert_eq!(rounded[0][5].0, -127);
    assert!(rounded[0][GROUP..].iter().all(|(code, _)| *code == 0));
    for ((code, scale), value) in rounded.concat().iter().zip(&x) {
        let error = (f32::from(*code) * scale - value).abs();
        assert!(error <= scale * 0.501, "{value} is off by {error}");
    }
}

#[test]
fn what_is_not_a_number_stays_none() {
    let mut x = [0.5; GROUP];
    x[3] = f32::NAN;
    let rounded = Activations::quantize(&alone(), &x, GROUP);
    assert!(elements(&rounded)[0][0].1.is_nan());
}

/// Codes, scales and minima at known places, so that a misread format shows.
#[test]
fn formats_are_read_as_they_are_defined() {
    let scale = f16::from_f32(0.5).to_le_bytes();
    let dequantized = |format: QuantFormat, block: &[u8]| {
        let mut out = vec![0.0; format.block_elements()];
        format.dequantize(block, &mut out);
        out
    };
    let block = |format: QuantFormat, parts: &[(usize, &[u8])]| {
        let mut block = vec![0; format.block_bytes()];
        for (at, bytes) in parts {
            block[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        dequantized(format, &block)
    };
    let q8 = block(QuantFormat::Q8_0, &[(0, &scale), (2, &[0x80]), (33, &[3])]);
    assert_eq!((q8[0], q8[1], q8[31]), (-64.0, 0.0, 1.5));
    let q4 = block(QuantFormat::Q4_0, &[(0, &scale), (2, &[0xf0]), (17, &[0x19])]);
    assert_eq!((q4[0], q4[16], q4[15], q4[31]), (-4.0, 3.5, 0.5, -3.5));
    let q5 = block(QuantFormat::Q5_0, &[(0, &scale), (2, &[1, 0, 0, 0x80]), (6, &[0x21])]);
    assert_eq!((q5[0], q5[16], q5[31]), (0.5, -7.0, 0.0));
    // Scale 3 and minimum 2 for the first group; scale 17 (1 and 1 << 4) for the fifth.
    let scales = [3 | 1 << 6, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0];
    let parts: [(usize, &[u8]); 5] =
        [(0, &scale), (2, &scale), (4, &scales), (16, &[5]), (16 + 64, &[2])];
    let q4k = block(QuantFormat::Q4K, &parts);
    assert_eq!((q4k[0], q4k[1], q4k[32], q4k[128]), (6.5, -1.0, 0.0, 17.0));
    let parts: [(usize, &[u8]); 5] =
        [(208, &scale), (0, &[0x21]), (128, &[0b0000_0001]), (192, &[2, 3]), (196, &[0xff])];
    let q6k = block(QuantFormat::Q6K, &parts);
    assert_eq!((q6k[0], q6k[16], q6k[64], q6k[32]), (-15.0, -48.0, 15.0, 0.0));
}
