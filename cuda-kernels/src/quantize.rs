//! Rounds matrices to 8 bits, as `kernels/gemv.cu` reads them.

/// How a number of 8 bits is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightCode {
    /// Two's complement, from -127 to 127.
    Int8,
    /// FP8 with 4 bits of exponent and 3 of mantissa, up to 448 (Micikevicius et al. 2022).
    Fp8,
}

/// A matrix `[outputs, inputs]` of codes and scales.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    /// `[outputs, inputs]`.
    pub codes: Vec<u8>,
    /// `[outputs, inputs / group]`: what a code's number is multiplied with.
    pub scales: Vec<f32>,
}

/// The largest number that FP8 has.
const FP8_MAX: f32 = 448.0;

/// Rounds each group of consecutive elements by a scale of its own, so that the largest of them has
/// the largest code. `weights` are rows whose length is a multiple of `group`, finite.
pub fn quantize_rows(weights: &[f32], group: usize, code: WeightCode) -> QuantizedMatrix {
    let largest = match code {
        WeightCode::Int8 => 127.0,
        WeightCode::Fp8 => FP8_MAX,
    };
    let mut matrix =
        QuantizedMatrix { codes: Vec::with_capacity(weights.len()), scales: Vec::new() };
    for weights in weights.chunks_exact(group) {
        let max = weights.iter().fold(0.0f32, |max, weight| max.max(weight.abs()));
        let scale = max / largest;
        matrix.scales.push(scale);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let rounded = weights.iter().map(|weight| match code {
            WeightCode::Int8 => (weight * inverse).round_ties_even() as i8 as u8,
            WeightCode::Fp8 => fp8_from_f32(weight * inverse),
        });
        matrix.codes.extend(rounded);
    }
    matrix
}

/// To nearest, ties to even; beyond the largest number, that one.
fn fp8_from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(FP8_MAX);
    // Codes of numbers are in their order, and steps between them double with the exponent.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let step = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    let steps = (magnitude / step).round_ties_even() as u8;
    sign | ((((exponent + 6) as u8) << 3) + steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp8_value(code: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f64.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn fp8_is_the_nearest_number() {
        for code in (0..=0xff).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(fp8_from_f32(fp8_value(code) as f32), code, "{code:#04x}");
        }
        let numbers: Vec<f64> = (0..0x7f).map(fp8_value).collect();
        for step in 0..50_000 {
            let value = f64::from(step) / 100.0;
            let found = fp8_value(fp8_from_f32(value as f32));
            let nearest = numbers.iter().map(|number| (number - value).abs());
            let nearest = nearest.fold(f64::INFINITY, f64::min);
            assert!((found - value).abs() <= nearest + 1e-12, "{value} became {found}");
        }
        // Halfway between 16 and 18 is 17: to the even mantissa.
        assert_eq!(fp8_value(fp8_from_f32(17.0)), 16.0);
        assert_eq!(fp8_value(fp8_from_f32(19.0)), 20.0);
        assert_eq!(fp8_value(fp8_from_f32(1e9)), 448.0);
    }

    #[test]
    fn each_group_has_its_scale() {
        let matrix = quantize_rows(&[1.0, -4.0, 0.0, 0.0, 100.0, 25.0], 2, WeightCode::Int8);
        assert_eq!(matrix.codes, [32, (-127i8) as u8, 0, 0, 127, 32]);
        assert_eq!(matrix.scales, [4.0 / 127.0, 0.0, 100.0 / 127.0]);
    }
}
