//! Scalar building blocks, written so that loops over them vectorise and give the same result
//! at every vector width: sums run over a fixed number of lanes, whatever the CPU's are.

/// Partial sums per reduction. Element i of a reduction goes to lane i % LANES.
pub const LANES: usize = 16;

/// Adds the lanes as a fixed tree.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of the squares of a slice.
#[inline(always)]
pub fn sum_of_squares(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = chunk[lane].mul_add(chunk[lane], lanes[lane]);
        }
    }
    for (lane, value) in tail.iter().enumerate() {
        lanes[lane] = value.mul_add(*value, lanes[lane]);
    }
    sum_lanes(lanes)
}

/// e^x by range reduction and a polynomial (relative error below 2e-7). Our own, because the
/// system's differs between C libraries and does not vectorise. Not fused: it is also called where
/// code is compiled for any CPU, and would call a function for each `mul_add`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let mantissa = p * r * r + r + 1.0;
    // The lowest bits of `shifted` are n.
    let exponent = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { mantissa * exponent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_reference_over_its_range() {
        for step in -8_700..8_800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_take_any_length() {
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let expected: f32 = x.iter().map(|v| v * v).sum();
            assert_eq!(sum_of_squares(&x), expected, "length {length}");
        }
    }
}
