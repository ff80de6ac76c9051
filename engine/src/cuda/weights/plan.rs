//! Which part of a model goes where in the allocation.

use cuda_kernels::{Dtype, WeightCode};

use super::{Code, Layer, Layout, Matrix, WeightFormat, dtype_of};
use crate::kernels::{QuantFormat, WeightData};
use crate::model::{Decoder, Layer as StoredLayer, Linear as StoredLinear, WeightMatrix};

/// Where parts begin: what the widest loads want, and cuBLAS likes.
const ALIGNMENT: usize = 256;
/// Elements that share a scale, as in the files (`Q8_0`).
pub const Q8_GROUP: usize = 32;
/// The same in FP8: the first of these that divides a row.
const FP8_GROUPS: [usize; 4] = [128, 64, 32, 16];

/// What goes where, in order.
pub struct Plan<'a> {
    /// What all dense numbers are.
    pub dtype: Dtype,
    format: WeightFormat,
    /// By their places.
    pub parts: Vec<Part<'a>>,
    end: usize,
}

/// Something that is written to the GPU.
pub struct Part<'a> {
    /// Where, in the allocation.
    pub at: usize,
    /// What.
    pub content: Content<'a>,
}

/// What a part is made of.
pub enum Content<'a> {
    /// Rows, widened or narrowed to the plan's type.
    Dense(&'a WeightMatrix),
    /// A vector.
    Vector(&'a [f32]),
    /// The codes of `Q8_0`.
    Codes(&'a WeightMatrix),
    /// Its scales, as f32.
    Scales(&'a WeightMatrix),
    /// Codes of FP8 of rows, and elsewhere their scales.
    Fp8 { matrix: &'a WeightMatrix, scales: usize, group: usize },
}

impl<'a> Plan<'a> {
    /// Nothing yet.
    pub fn new(stored: &Decoder, format: WeightFormat) -> Self {
        let dtype = dtype_of(stored.layers[0].key.weight());
        Self { dtype, format, parts: Vec::new(), end: 0 }
    }

    /// Finds a place for everything.
    pub fn layout(&mut self, stored: &'a Decoder) -> Layout {
        let embedding = self.dense(&stored.embedding);
        let layers = stored.layers.iter().map(|layer| self.layer(layer)).collect();
        let final_norm = self.vector(&stored.final_norm);
        let [outputs, inputs] = stored.embedding.shape();
        let output = match &stored.output {
            Some(output) => self.matrix(&[output], None),
            None => Matrix { outputs, inputs, at: embedding, code: None, bias: None },
        };
        let dtype = self.dtype;
        Layout { dtype, embedding, layers, final_norm, output, bytes: self.end }
    }

    fn layer(&mut self, stored: &'a StoredLayer) -> Layer {
        let head_norm = |plan: &mut Self, norm: &'a Option<Vec<f32>>| {
            norm.as_deref().map(|norm| plan.vector(norm))
        };
        Layer {
            attention_norm: self.vector(&stored.attention_norm),
            query_key_value: self.linear(&[&stored.query, &stored.key, &stored.value]),
            attention_output: self.linear(&[&stored.attention_output]),
            query_norm: head_norm(self, &stored.query_norm),
            key_norm: head_norm(self, &stored.key_norm),
            mlp_norm: self.vector(&stored.mlp_norm),
            gate_up: self.linear(&[&stored.gate, &stored.up]),
            down: self.linear(&[&stored.down]),
            window: stored.window,
        }
    }

    /// Layers as one, whose outputs are theirs beside each other. All of them have a bias, or none.
    fn linear(&mut self, stored: &[&'a StoredLinear]) -> Matrix {
        let matrices: Vec<_> = stored.iter().map(|linear| linear.weight()).collect();
        let mut bias = None;
        for part in stored.iter().filter_map(|linear| linear.bias()) {
            let at = self.place(part.len() * self.dtype.bytes(), bias.is_none());
            bias = bias.or(Some(at));
            self.parts.push(Part { at, content: Content::Vector(part) });
        }
        self.matrix(&matrices, bias)
    }

    fn matrix(&mut self, matrices: &[&'a WeightMatrix], bias: Option<usize>) -> Matrix {
        let outputs = matrices.iter().map(|matrix| matrix.shape()[0]).sum();
        let inputs = matrices[0].shape()[1];
        let is_coded = |matrix: &&WeightMatrix| {
            let data = matrix.matrix().data;
            matches!(data, WeightData::Quantized { format: QuantFormat::Q8_0, .. })
        };
        let group = FP8_GROUPS.into_iter().find(|group| inputs.is_multiple_of(*group));
        if let (WeightFormat::Fp8, Some(group)) = (self.format, group) {
            let (at, scales) = self.fp8(matrices, inputs, group);
            let code = Some(Code { code: WeightCode::Fp8, scales, group });
            return Matrix { outputs, inputs, at, code, bias };
        }
        if !matrices.iter().all(is_coded) {
            let at = self.rows(matrices, inputs * self.dtype.bytes(), Content::Dense);
            return Matrix { outputs, inputs, at, code: None, bias };
        }
        let at = self.rows(matrices, inputs, Content::Codes);
        let scales_bytes = inputs / Q8_GROUP * size_of::<f32>();
        let scales = self.rows(matrices, scales_bytes, Content::Scales);
        let code = Some(Code { code: WeightCode::Int8, scales, group: Q8_GROUP });
        Matrix { outputs, inputs, at, code, bias }
    }

    /// Codes of matrices one after the other, and behind them all scales.
    fn fp8(
        &mut self,
        matrices: &[&'a WeightMatrix],
        inputs: usize,
        group: usize,
    ) -> (usize, usize) {
        let rows: usize = matrices.iter().map(|matrix| matrix.shape()[0]).sum();
        let first_at = self.place(rows * inputs, true);
        let first_scales = self.place(rows * inputs / group * size_of::<f32>(), true);
        let (mut at, mut scales) = (first_at, first_scales);
        for matrix in matrices {
            self.parts.push(Part { at, content: Content::Fp8 { matrix, scales, group } });
            at += matrix.shape()[0] * inputs;
            scales += matrix.shape()[0] * inputs / group * size_of::<f32>();
        }
        (first_at, first_scales)
    }

    /// The rows of matrices one after the other.
    fn rows(
        &mut self,
        matrices: &[&'a WeightMatrix],
        row_bytes: usize,
        content: fn(&'a WeightMatrix) -> Content<'a>,
    ) -> usize {
        let mut first = None;
        for matrix in matrices {
            let at = self.place(matrix.shape()[0] * row_bytes, first.is_none());
            first = first.or(Some(at));
            self.parts.push(Part { at, content: content(matrix) });
        }
        first.unwrap_or_default()
    }

    fn dense(&mut self, matrix: &'a WeightMatrix) -> usize {
        self.rows(&[matrix], matrix.shape()[1] * self.dtype.bytes(), Content::Dense)
    }

    fn vector(&mut self, vector: &'a [f32]) -> usize {
        let at = self.place(vector.len() * self.dtype.bytes(), true);
        self.parts.push(Part { at, content: Content::Vector(vector) });
        at
    }

    /// Room for so many bytes, behind what is there.
    fn place(&mut self, bytes: usize, is_aligned: bool) -> usize {
        if is_aligned {
            self.end = self.end.next_multiple_of(ALIGNMENT);
        }
        let at = self.end;
        self.end += bytes;
        at
    }
}
