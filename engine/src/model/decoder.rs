//! The forward pass: tokens of several sequences in, logits of the rows that were asked for out.

use half::{bf16, f16};
use kv_transfer::{HostMemory, KvLayout};

use super::ModelConfig;
use super::layer::Layer;
use super::linear::product;
use super::weights::{WeightMatrix, Weights};
use crate::LoadError;
use crate::kernels::{
    AttentionShape, Compute, Element, HeadShape, KvPlanes, QuerySpan, RmsNorm, RopeTable,
    WeightData, attend, matmul_all, matmul_swiglu, split_rows,
};

/// Consecutive tokens of one sequence to compute in this step.
pub struct Span<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Position of the first of them.
    pub start: usize,
    /// The sequence's blocks, with room for all of them.
    pub blocks: &'a [u32],
    /// After how many of the last tokens the logits are wanted.
    pub logits: usize,
}

/// The layers of a model.
pub struct Decoder {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: WeightMatrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Vec<f32>,
    /// Absent where the output layer is the embedding.
    pub(crate) output: Option<WeightMatrix>,
    pub(crate) rope: RopeTable,
    kv_element: KvElement,
}

/// KV is stored as the weights are, and as f16 where those are quantised.
#[derive(Clone, Copy, PartialEq)]
enum KvElement {
    F32,
    Bf16,
    F16,
}

impl Decoder {
    pub(super) fn new(config: &ModelConfig, weights: &Weights) -> Result<Self, LoadError> {
        let (vocabulary, hidden) = (config.vocabulary_size, config.hidden_size);
        let embedding = weights.matrix("model.embed_tokens.weight", vocabulary, hidden)?;
        let output = match config.tied_embeddings {
            true => None,
            false => Some(weights.matrix("lm_head.weight", vocabulary, hidden)?),
        };
        let layers = (0..config.layers).map(|index| Layer::load(config, weights, index));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let kv_element = match layers[0].key.weight().matrix().data {
            WeightData::F32(_) => KvElement::F32,
            WeightData::Bf16(_) => KvElement::Bf16,
            WeightData::F16(_) | WeightData::Quantized { .. } => KvElement::F16,
        };
        Ok(Self {
            embedding,
            layers,
            final_norm: weights.vector("model.norm.weight", hidden)?,
            output,
            rope: RopeTable::new(
                config.head_dim,
                config.rope_theta,
                config.rope_scaling.as_ref(),
                weights.rope_pairing,
            ),
            kv_element,
            config: config.clone(),
        })
    }

    /// The layout of KV blocks for this model.
    pub fn kv_layout(&self, numerics_id: &str, block_size: usize) -> KvLayout {
        let element_bytes = if self.kv_element == KvElement::F32 { 4 } else { 2 };
        self.config.kv_layout(numerics_id, block_size, element_bytes)
    }

    /// Computes all spans, writes their KV into `memory`, and returns the wanted logits, rows of
    /// `[vocabulary_size]` in order. Runs on `compute`'s threads.
    pub fn forward(
        &self,
        compute: &Compute,
        spans: &[Span<'_>],
        layout: &KvLayout,
        memory: &HostMemory,
    ) -> Vec<f32> {
        match self.kv_element {
            KvElement::F32 => self.forward_with::<f32>(compute, spans, layout, memory),
            KvElement::Bf16 => self.forward_with::<bf16>(compute, spans, layout, memory),
            KvElement::F16 => self.forward_with::<f16>(compute, spans, layout, memory),
        }
    }

    fn forward_with<E: Element>(
        &self,
        compute: &Compute,
        spans: &[Span<'_>],
        layout: &KvLayout,
        memory: &HostMemory,
    ) -> Vec<f32> {
        let mut batch = Batch::of(spans, |span| span.tokens.len());
        let mut x = self.embed(compute, spans, batch.rows);
        let mut angles = self.angles(compute, &batch);
        let mut buffers = Buffers::default();
        self.norm(&self.layers[0].attention_norm).apply(compute, &x, buffers.normed(x.len()));
        for (index, layer) in self.layers.iter().enumerate() {
            let kv = KvPlanes { layout, memory, layer: index };
            let pass = LayerPass { decoder: self, layer, compute, kv };
            pass.store::<E>(&batch, &angles, &mut buffers);
            let next_norm = match self.layers.get(index + 1) {
                Some(next) => &next.attention_norm,
                None => {
                    // From here on, nobody needs other rows than those whose logits are wanted.
                    let wanted = Batch::of(spans, |span| span.logits);
                    if wanted.rows == 0 {
                        return Vec::new();
                    }
                    for rows in [&mut x, &mut buffers.queries, &mut angles] {
                        batch.keep(&wanted, rows);
                    }
                    batch = wanted;
                    &self.final_norm
                }
            };
            pass.attention::<E>(&batch, &angles, &mut x, &mut buffers);
            pass.feed_forward(batch.rows, next_norm, &mut x, &mut buffers);
        }
        let mut logits = Vec::new();
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        matmul_all(compute, &buffers.normed, [product(batch.rows, output, &mut logits)]);
        logits
    }

    fn embed(&self, compute: &Compute, spans: &[Span<'_>], rows: usize) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let mut x = vec![0.0; rows * hidden];
        let embedding = self.embedding.matrix();
        split_rows(compute, [(&mut x, hidden)], rows * hidden, |first, [x]| {
            for (row, token) in x.chunks_exact_mut(hidden).zip(&tokens[first..]) {
                embedding.copy_row(*token as usize, row);
            }
        });
        x
    }

    /// Cosines and sines of each row's position: `[rows, 2, head_dim / 2]`.
    fn angles(&self, compute: &Compute, batch: &Batch<'_>) -> Vec<f32> {
        /// What a sine costs in multiply-adds.
        const SINE_COST: usize = 256;
        let head_dim = self.config.head_dim;
        let positions: Vec<usize> = batch.positions().collect();
        let mut angles = vec![0.0; batch.rows * head_dim];
        let cost = SINE_COST * angles.len();
        split_rows(compute, [(&mut angles, head_dim)], cost, |first, [angles]| {
            for (angles, position) in angles.chunks_exact_mut(head_dim).zip(&positions[first..]) {
                let (cos, sin) = angles.split_at_mut(head_dim / 2);
                self.rope.at(*position, cos, sin);
            }
        });
        angles
    }

    fn norm<'a>(&self, weight: &'a [f32]) -> RmsNorm<'a> {
        RmsNorm { weight, epsilon: self.config.rms_norm_epsilon }
    }
}

/// Rows that are computed together.
struct Batch<'a> {
    spans: Vec<QuerySpan<'a>>,
    rows: usize,
}

impl<'a> Batch<'a> {
    /// The last `rows_of` rows of each span.
    fn of(spans: &[Span<'a>], rows_of: impl Fn(&Span<'a>) -> usize) -> Self {
        let last_rows = |span: &Span<'a>| {
            let rows = rows_of(span);
            QuerySpan { blocks: span.blocks, start: span.start + span.tokens.len() - rows, rows }
        };
        let spans: Vec<_> = spans.iter().map(last_rows).collect();
        Self { rows: spans.iter().map(|span| span.rows).sum(), spans }
    }

    fn positions(&self) -> impl Iterator<Item = usize> {
        self.spans.iter().flat_map(|span| span.start..span.start + span.rows)
    }

    /// Of `x` (`[rows, any]`) keeps the rows that are also `part`'s: the last of each span.
    fn keep(&self, part: &Self, x: &mut Vec<f32>) {
        let row_len = x.len() / self.rows;
        let (mut end, mut kept) = (0, 0);
        for (span, part) in self.spans.iter().zip(&part.spans) {
            end += span.rows;
            x.copy_within((end - part.rows) * row_len..end * row_len, kept * row_len);
            kept += part.rows;
        }
        x.truncate(kept * row_len);
    }
}

/// What layers compute in between: each has the size of a step's rows, and is used again by the next
/// layer.
#[derive(Default)]
struct Buffers {
    /// `[rows, hidden_size]`
    normed: Vec<f32>,
    /// `[rows, heads, head_dim]`
    queries: Vec<f32>,
    /// `[rows, kv_heads, head_dim]`
    keys: Vec<f32>,
    /// `[rows, kv_heads, head_dim]`
    values: Vec<f32>,
    /// `[rows, heads, head_dim]`
    attended: Vec<f32>,
    /// `[rows, hidden_size]`
    projected: Vec<f32>,
    /// `[rows, intermediate_size]`
    gate: Vec<f32>,
    /// `[rows, intermediate_size]`
    up: Vec<f32>,
}

impl Buffers {
    fn normed(&mut self, len: usize) -> &mut [f32] {
        self.normed.resize(len, 0.0);
        &mut self.normed
    }
}

/// What one layer's computation needs to know.
struct LayerPass<'a> {
    decoder: &'a Decoder,
    layer: &'a Layer,
    compute: &'a Compute,
    kv: KvPlanes<'a>,
}

impl LayerPass<'_> {
    /// Computes queries of all rows, and stores their keys and values.
    fn store<E: Element>(&self, batch: &Batch<'_>, angles: &[f32], buffers: &mut Buffers) {
        let Buffers { normed, queries, keys, values, .. } = buffers;
        let Layer { query, key, value, .. } = self.layer;
        let products = [
            query.product(batch.rows, queries),
            key.product(batch.rows, keys),
            value.product(batch.rows, values),
        ];
        matmul_all(self.compute, normed, products);
        let shape = self.head_shape(angles, self.layer.key_norm.as_deref());
        self.kv.store::<E>(self.compute, &batch.spans, &shape, keys, values);
    }

    /// Adds what rows attend to, and leaves them normalised for `feed_forward`.
    fn attention<E: Element>(
        &self,
        batch: &Batch<'_>,
        angles: &[f32],
        x: &mut [f32],
        buffers: &mut Buffers,
    ) {
        let Self { decoder, layer, compute, kv, .. } = *self;
        let Buffers { normed, queries, attended, projected, .. } = buffers;
        let heads = decoder.config.heads;
        let shape = self.head_shape(angles, layer.query_norm.as_deref());
        shape.prepare(compute, queries, heads * shape.head_dim);
        let KvPlanes { layout, memory, layer: index } = kv;
        let shape = AttentionShape { layout, layer: index, heads, window: layer.window };
        attended.resize(queries.len(), 0.0);
        attend::<E>(compute, &shape, memory, &batch.spans, queries, attended);
        let output = layer.attention_output.product(batch.rows, projected);
        matmul_all(compute, attended, [output]);
        normed.resize(x.len(), 0.0);
        decoder.norm(&layer.mlp_norm).add_and_apply(compute, x, projected, normed);
    }

    /// Adds the feed-forward layer, and leaves rows normalised for what comes next.
    fn feed_forward(&self, rows: usize, next_norm: &[f32], x: &mut [f32], buffers: &mut Buffers) {
        let Self { decoder, layer, compute, .. } = *self;
        let Buffers { normed, projected, gate, up, .. } = buffers;
        matmul_swiglu(compute, normed, layer.gate.product(rows, gate), layer.up.product(rows, up));
        matmul_all(compute, gate, [layer.down.product(rows, projected)]);
        decoder.norm(next_norm).add_and_apply(compute, x, projected, normed);
    }

    /// `angles` is `[rows, head_dim]`.
    fn head_shape<'a>(&self, angles: &'a [f32], norm: Option<&'a [f32]>) -> HeadShape<'a> {
        let norm = norm.map(|weight| self.decoder.norm(weight));
        HeadShape {
            angles,
            head_dim: self.decoder.config.head_dim,
            pairing: self.decoder.rope.pairing,
            norm,
        }
    }
}
