//! The forward pass: tokens of several sequences in, logits of the rows that were asked for out.

use half::{bf16, f16};
use kv_transfer::{HostMemory, KvLayout};

use super::ModelConfig;
use super::layer::Layer;
use super::linear::project;
use super::weights::{WeightMatrix, Weights};
use crate::LoadError;
use crate::kernels::{
    AttentionShape, Compute, Element, QueryRow, RopeTable, WeightData, add_assign, attend,
    rms_norm, rotate, silu_multiply,
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
    config: ModelConfig,
    embedding: WeightMatrix,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    /// Absent where the output layer is the embedding.
    output: Option<WeightMatrix>,
    rope: RopeTable,
    kv_element: KvElement,
}

/// KV is stored as the weights are, and as f16 where those are quantised.
#[derive(Clone, Copy, PartialEq)]
enum KvElement {
    F32,
    Bf16,
    F16,
}

/// One token of the batch: its position, and its sequence's blocks.
struct Row<'a> {
    position: usize,
    blocks: &'a [u32],
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
        KvLayout {
            numerics_id: numerics_id.to_string(),
            block_size,
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            element_bytes: if self.kv_element == KvElement::F32 { 4 } else { 2 },
        }
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
        let rows: Vec<Row<'_>> = spans.iter().flat_map(rows_of).collect();
        let mut x = self.embed(spans, rows.len());
        let angles = self.angles(&rows);
        for (index, layer) in self.layers.iter().enumerate() {
            let pass = LayerPass { decoder: self, compute, layout, memory, rows: &rows, index };
            pass.attention::<E>(layer, &angles, &mut x);
            pass.feed_forward(layer, &mut x);
        }
        self.logits(compute, spans, &x)
    }

    fn embed(&self, spans: &[Span<'_>], rows: usize) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut x = vec![0.0; rows * hidden];
        let embedding = self.embedding.matrix();
        let tokens = spans.iter().flat_map(|span| span.tokens);
        for (row, token) in x.chunks_exact_mut(hidden).zip(tokens) {
            embedding.copy_row(*token as usize, row);
        }
        x
    }

    /// Cosines and sines of each row's position: `[rows, 2, head_dim / 2]`.
    fn angles(&self, rows: &[Row<'_>]) -> Vec<f32> {
        let head_dim = self.config.head_dim;
        let mut angles = vec![0.0; rows.len() * head_dim];
        for (angles, row) in angles.chunks_exact_mut(head_dim).zip(rows) {
            let (cos, sin) = angles.split_at_mut(head_dim / 2);
            self.rope.at(row.position, cos, sin);
        }
        angles
    }

    fn logits(&self, compute: &Compute, spans: &[Span<'_>], x: &[f32]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut wanted = Vec::new();
        let mut end = 0;
        for span in spans {
            end += span.tokens.len();
            wanted.extend_from_slice(&x[(end - span.logits) * hidden..end * hidden]);
        }
        rms_norm(&mut wanted, &self.final_norm, self.config.rms_norm_epsilon);
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        project(compute, &wanted, output)
    }
}

fn rows_of<'a>(span: &Span<'a>) -> impl Iterator<Item = Row<'a>> + use<'a> {
    let (start, blocks) = (span.start, span.blocks);
    (0..span.tokens.len()).map(move |offset| Row { position: start + offset, blocks })
}

/// What one layer's computation needs to know of the batch.
struct LayerPass<'a> {
    decoder: &'a Decoder,
    compute: &'a Compute,
    layout: &'a KvLayout,
    memory: &'a HostMemory,
    rows: &'a [Row<'a>],
    index: usize,
}

impl LayerPass<'_> {
    fn attention<E: Element>(&self, layer: &Layer, angles: &[f32], x: &mut [f32]) {
        let (config, compute) = (&self.decoder.config, self.compute);
        let mut normed = x.to_vec();
        rms_norm(&mut normed, &layer.attention_norm, config.rms_norm_epsilon);
        let mut queries = layer.query.apply(compute, &normed);
        let mut keys = layer.key.apply(compute, &normed);
        let values = layer.value.apply(compute, &normed);
        if let (Some(query_norm), Some(key_norm)) = (&layer.query_norm, &layer.key_norm) {
            rms_norm(&mut queries, query_norm, config.rms_norm_epsilon);
            rms_norm(&mut keys, key_norm, config.rms_norm_epsilon);
        }
        self.rotate_rows(&mut queries, angles);
        self.rotate_rows(&mut keys, angles);
        let KvLayout { block_size, head_dim, .. } = *self.layout;
        // Keys lie transposed (see `kernels::attend`): element d of a slot at d * block_size + slot.
        self.store::<E>(self.layout.keys_offset(self.index), &keys, |slot, d| {
            d * block_size + slot
        });
        self.store::<E>(self.layout.values_offset(self.index), &values, |slot, d| {
            slot * head_dim + d
        });

        let query_rows: Vec<QueryRow<'_>> = self.rows.iter().map(Row::query).collect();
        let shape = AttentionShape {
            layout: self.layout,
            layer: self.index,
            heads: config.heads,
            window: layer.window,
        };
        let mut attended = vec![0.0; queries.len()];
        attend::<E>(compute, &shape, self.memory, &query_rows, &queries, &mut attended);
        add_assign(x, &layer.attention_output.apply(compute, &attended));
    }

    fn feed_forward(&self, layer: &Layer, x: &mut [f32]) {
        let mut normed = x.to_vec();
        rms_norm(&mut normed, &layer.mlp_norm, self.decoder.config.rms_norm_epsilon);
        let mut gate = layer.gate.apply(self.compute, &normed);
        silu_multiply(&mut gate, &layer.up.apply(self.compute, &normed));
        add_assign(x, &layer.down.apply(self.compute, &gate));
    }

    fn rotate_rows(&self, heads: &mut [f32], angles: &[f32]) {
        let head_dim = self.layout.head_dim;
        let row_len = heads.len() / self.rows.len();
        for (heads, angles) in heads.chunks_exact_mut(row_len).zip(angles.chunks_exact(head_dim)) {
            let (cos, sin) = angles.split_at(head_dim / 2);
            rotate(heads, cos, sin, self.decoder.rope.pairing);
        }
    }

    /// Stores keys or values (`[rows, kv_heads, head_dim]`) in each token's block; `place` says
    /// where element d of a slot lies in a head's plane.
    fn store<E: Element>(
        &self,
        planes_at: usize,
        rows: &[f32],
        place: impl Fn(usize, usize) -> usize,
    ) {
        let KvLayout { block_size, kv_heads, head_dim, .. } = *self.layout;
        let elements = block_size * head_dim;
        let bytes = elements * size_of::<E>();
        for (row, heads) in self.rows.iter().zip(rows.chunks_exact(kv_heads * head_dim)) {
            let block = row.blocks[row.position / block_size];
            let slot = row.position % block_size;
            for (head, from) in heads.chunks_exact(head_dim).enumerate() {
                // SAFETY: the engine's thread is the only one that computes on this pool, and a
                // block that is not full belongs to this row's sequence alone.
                let plane = unsafe { self.memory.write(block, planes_at + head * bytes, bytes) };
                // SAFETY: as many elements of E, aligned as in `attention::head_plane`.
                let plane = unsafe {
                    std::slice::from_raw_parts_mut(plane.as_mut_ptr().cast::<E>(), elements)
                };
                for (d, value) in from.iter().enumerate() {
                    plane[place(slot, d)] = E::narrow(*value);
                }
            }
        }
    }
}

impl<'a> Row<'a> {
    fn query(&self) -> QueryRow<'a> {
        QueryRow { blocks: self.blocks, context_tokens: self.position + 1 }
    }
}
