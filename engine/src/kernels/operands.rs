//! Activations as weights of each type take them.

use super::quantized::Activations;
use super::{Compute, KernelPath, Matrix, WeightData};

/// `x`, and what else some matrices need of it; made once for all of them.
pub struct Operands<'a> {
    /// `[rows, inputs]`.
    pub x: &'a [f32],
    bf16: ForBf16,
    codes: Option<Activations>,
}

/// What bf16 weights are multiplied with.
enum ForBf16 {
    /// `x` itself.
    Plain,
    #[cfg(target_arch = "x86_64")]
    Rounded(Vec<half::bf16>),
    #[cfg(target_arch = "x86_64")]
    Tiles(super::amx::bf16::PackedRows),
}

impl<'a> Operands<'a> {
    /// Of `x` (`[rows, inputs]`) for products with all of `weights`, which have as many inputs.
    pub fn of<const N: usize>(compute: &Compute, x: &'a [f32], weights: [Matrix<'_>; N]) -> Self {
        let inputs = weights[0].inputs;
        assert!(weights.iter().all(|weight| weight.inputs == inputs), "weights share x");
        let any = |is: fn(&WeightData<'_>) -> bool| weights.iter().any(|weight| is(&weight.data));
        let bf16 = match any(|data| matches!(data, WeightData::Bf16(_))) {
            true => ForBf16::of(compute, x, inputs),
            false => ForBf16::Plain,
        };
        let is_quantized = any(|data| matches!(data, WeightData::Quantized { .. }));
        let codes = is_quantized.then(|| Activations::quantize(compute, x, inputs));
        Self { x, bf16, codes }
    }

    /// As the kernels by `vdpbf16ps` take it.
    #[cfg(target_arch = "x86_64")]
    pub fn rounded(&self) -> &[half::bf16] {
        match &self.bf16 {
            ForBf16::Rounded(x) => x,
            _ => unreachable!("made where there are weights that need it"),
        }
    }

    /// As the kernels by tiles take it.
    #[cfg(target_arch = "x86_64")]
    pub fn tiles(&self) -> &super::amx::bf16::PackedRows {
        match &self.bf16 {
            ForBf16::Tiles(x) => x,
            _ => unreachable!("made where there are weights that need it"),
        }
    }

    /// In 8 bits.
    pub fn codes(&self) -> &Activations {
        self.codes.as_ref().expect("made where there are quantised weights")
    }
}

impl ForBf16 {
    fn of(compute: &Compute, x: &[f32], inputs: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        return match compute.path() {
            KernelPath::Portable => Self::Plain,
            KernelPath::Avx512Bf16 => Self::Rounded(super::avx512::to_bf16(compute, x)),
            KernelPath::AmxBf16 => {
                Self::Tiles(super::amx::bf16::PackedRows::new(compute, x, inputs))
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        {
            let (KernelPath::Portable, _) = (compute.path(), (x, inputs)) else {
                unreachable!("other paths are not available")
            };
            Self::Plain
        }
    }
}
