//! The forward pass: tokens of several sequences in, logits of the rows that were asked for out.

use candle_core::{DType, Device, Result, Tensor};
use kv_transfer::{HostMemory, KvLayout};

use super::attention::Queries;
use super::kv::KvCache;
use super::product::{Linear, Product, RmsNorm};
use super::rounding::Rounding;
use super::shapes::Shapes;
use crate::Numerics;
use crate::kernels::{QuerySpan, RopePairing, RopeTable};
use crate::model::{Decoder, Layer as StoredLayer, Linear as StoredLinear, ModelConfig, Span};

/// The layers of a model, on a device.
pub struct CandleDecoder {
    config: ModelConfig,
    device: Device,
    rounding: Rounding,
    shapes: Shapes,
    /// `[vocabulary_size, hidden_size]`
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: RmsNorm,
    output: Product,
    rope: RopeTable,
}

/// One decoder layer; its parts are those of `model::Layer`.
struct Layer {
    attention_norm: RmsNorm,
    /// To `[heads, head_dim]`, and twice `[kv_heads, head_dim]`.
    query_key_value: Linear,
    attention_output: Linear,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    mlp_norm: RmsNorm,
    /// To `[2, intermediate_size]`.
    gate_up: Linear,
    down: Linear,
    window: Option<usize>,
}

impl CandleDecoder {
    /// Brings a decoder's weights to the device.
    pub(super) fn new(stored: &Decoder, device: &Device, numerics: Numerics) -> Result<Self> {
        let Decoder { config, embedding, layers, final_norm, output, rope, .. } = stored;
        let rounding = Rounding::of(layers[0].key.weight(), device);
        let shapes = Shapes::of(numerics, device);
        let embedding = rounding.matrix(embedding, device)?;
        let output = match output {
            Some(output) => rounding.matrix(output, device)?,
            None => embedding.clone(),
        };
        let norm = |weight: &[f32]| RmsNorm::new(weight, config.rms_norm_epsilon, device);
        let rows = shapes.product_rows;
        let layer = |stored: &StoredLayer| -> Result<Layer> {
            let linear = |stored: &[&StoredLinear]| Linear::new(stored, device, rounding, rows);
            let head_norm = |weight: &Option<Vec<f32>>| weight.as_deref().map(norm).transpose();
            Ok(Layer {
                attention_norm: norm(&stored.attention_norm)?,
                query_key_value: linear(&[&stored.query, &stored.key, &stored.value])?,
                attention_output: linear(&[&stored.attention_output])?,
                query_norm: head_norm(&stored.query_norm)?,
                key_norm: head_norm(&stored.key_norm)?,
                mlp_norm: norm(&stored.mlp_norm)?,
                gate_up: linear(&[&stored.gate, &stored.up])?,
                down: linear(&[&stored.down])?,
                window: stored.window,
            })
        };
        Ok(Self {
            embedding,
            layers: layers.iter().map(layer).collect::<Result<_>>()?,
            final_norm: norm(final_norm)?,
            output: Product::new(output, rounding, rows),
            rope: rope.clone(),
            config: config.clone(),
            device: device.clone(),
            rounding,
            shapes,
        })
    }

    /// As what weights and KV are stored.
    pub(super) fn dtype(&self) -> DType {
        self.rounding.dtype
    }

    /// In which shapes it computes.
    pub(super) fn shapes(&self) -> Shapes {
        self.shapes
    }

    /// Rows of the embedding.
    pub(super) fn vocabulary_size(&self) -> usize {
        self.config.vocabulary_size
    }

    /// The layout of KV blocks for this model.
    pub fn kv_layout(&self, numerics_id: &str, block_size: usize) -> KvLayout {
        self.config.kv_layout(numerics_id, block_size, self.rounding.dtype.size_in_bytes())
    }

    /// Computes all spans, writes their KV into `memory`, and returns the wanted logits, rows of
    /// `[vocabulary_size]` in order. Errors: the device's.
    pub fn forward(
        &self,
        spans: &[Span<'_>],
        layout: &KvLayout,
        memory: &HostMemory,
    ) -> Result<Vec<f32>> {
        let tokens: Vec<u32> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let tokens = Tensor::new(tokens, &self.device)?;
        let mut x = self.embedding.index_select(&tokens, 0)?.to_dtype(DType::F32)?;
        let angles = self.angles(spans)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let kv = KvCache { layout, memory, layer: index, dtype: self.dtype() };
            let attended = self.attention(layer, spans, kv, &angles, &x)?;
            x = (x + layer.attention_output.apply(&attended)?)?;
            x = (&x + layer.feed_forward(&x)?)?;
        }
        self.logits(spans, &x)
    }

    /// The cosines and sines of each row's position, each `[rows, 1, head_dim / 2]`.
    fn angles(&self, spans: &[Span<'_>]) -> Result<[Tensor; 2]> {
        let half = self.config.head_dim / 2;
        let positions = spans.iter().flat_map(|span| span.start..span.start + span.tokens.len());
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for position in positions {
            let end = cosines.len();
            cosines.resize(end + half, 0.0);
            sines.resize(end + half, 0.0);
            self.rope.at(position, &mut cosines[end..], &mut sines[end..]);
        }
        let shape = (cosines.len() / half, 1, half);
        let cosines = Tensor::from_vec(cosines, shape, &self.device)?;
        Ok([cosines, Tensor::from_vec(sines, shape, &self.device)?])
    }

    /// What rows attend to: `[rows, heads * head_dim]`.
    fn attention(
        &self,
        layer: &Layer,
        spans: &[Span<'_>],
        kv: KvCache<'_>,
        angles: &[Tensor; 2],
        x: &Tensor,
    ) -> Result<Tensor> {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.config;
        let normed = layer.attention_norm.apply(x)?;
        let projected = layer.query_key_value.apply(&normed)?;
        let projected = projected.reshape((normed.dim(0)?, heads + 2 * kv_heads, head_dim))?;
        let queries = projected.narrow(1, 0, heads)?;
        let keys = projected.narrow(1, heads, kv_heads)?.contiguous()?;
        let values = projected.narrow(1, heads + kv_heads, kv_heads)?;

        let keys = self.prepare(&keys, layer.key_norm.as_ref(), angles)?;
        let stored: Vec<QuerySpan<'_>> = spans.iter().map(query_span).collect();
        kv.store(&stored, &keys, &values)?;
        let queries = self.prepare(&queries.contiguous()?, layer.query_norm.as_ref(), angles)?;
        self.attend(layer.window, spans, kv, &queries)
    }

    /// Attends with queries (`[rows, heads, head_dim]`) to what is stored up to their positions.
    fn attend(
        &self,
        window: Option<usize>,
        spans: &[Span<'_>],
        kv: KvCache<'_>,
        queries: &Tensor,
    ) -> Result<Tensor> {
        let tile = self.shapes.attention;
        let (mut attended, mut row) = (Vec::new(), 0);
        for span in spans {
            let (start, rows) = (span.start, span.tokens.len());
            let end = start + rows;
            let pieces = tile.map_or(end, |tile| tile.positions);
            let context = kv.gather(span.blocks, end, pieces, &self.device)?;
            let queries = Queries { queries: &queries.narrow(0, row, rows)?, start, window };
            attended.push(queries.attend(&context, tile)?);
            row += rows;
        }
        Tensor::cat(&attended, 0)
    }

    /// Normalises heads (`[rows, heads, head_dim]`), where the model does, and rotates them.
    fn prepare(
        &self,
        heads: &Tensor,
        norm: Option<&RmsNorm>,
        [cosines, sines]: &[Tensor; 2],
    ) -> Result<Tensor> {
        let heads = match norm {
            Some(norm) => norm.apply(heads)?,
            None => heads.clone(),
        };
        let (rows, count, head_dim) = heads.dims3()?;
        let half = head_dim / 2;
        let [a, b] = match self.rope.pairing {
            RopePairing::Halves => [heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?],
            RopePairing::Neighbours => {
                let pairs = heads.reshape((rows, count, half, 2))?;
                [pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?]
            }
        };
        let first = (a.broadcast_mul(cosines)? - b.broadcast_mul(sines)?)?;
        let second = (b.broadcast_mul(cosines)? + a.broadcast_mul(sines)?)?;
        match self.rope.pairing {
            RopePairing::Halves => Tensor::cat(&[first, second], 2),
            RopePairing::Neighbours => {
                Tensor::stack(&[first, second], 3)?.reshape((rows, count, head_dim))
            }
        }
    }

    /// The logits of the last rows of each span.
    fn logits(&self, spans: &[Span<'_>], x: &Tensor) -> Result<Vec<f32>> {
        let (mut wanted, mut end) = (Vec::new(), 0);
        for span in spans {
            end += span.tokens.len() as u32;
            wanted.extend(end - span.logits as u32..end);
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = x.index_select(&Tensor::new(wanted, &self.device)?, 0)?;
        self.output.apply(&self.final_norm.apply(&wanted)?)?.flatten_all()?.to_vec1()
    }
}

impl Layer {
    /// SwiGLU of the normalised rows.
    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.mlp_norm.apply(x)?;
        let both = self.gate_up.apply(&normed)?.chunk(2, 1)?;
        self.down.apply(&(both[0].silu()? * &both[1])?)
    }
}

fn query_span<'a>(span: &Span<'a>) -> QuerySpan<'a> {
    QuerySpan { blocks: span.blocks, start: span.start, rows: span.tokens.len() }
}
