//! The forward pass on a GPU: what is put on a stream for a step.

use std::sync::Arc;

use cuda_driver::{Allocation, CudaError, Device, Pinned, Stream};
use cuda_kernels::{
    AddAndNormalise, AddBias, AttendRows, AttendTiles, Dtype, Embed, GEMV_ROWS_MAX, Gemv,
    GemvWeights, KernelShape, KvPlanes, Launch, PrepareHeads, SiluMultiply, Tables, TakeRows,
    WidenWeights,
};
use kv_transfer::KvLayout;
use kv_transfer::cuda::CudaMemory;

use super::CudaFailure;
use super::buffers::{Buffers, PRODUCT_ROWS};
use super::card::Kernels;
use super::cublas::{CublasStream, Gemm};
use super::step::Step;
use super::weights::{Layer, Matrix, Weights};
use crate::Numerics;
use crate::kernels::{RopePairing, RopeTable};
use crate::model::{Decoder, ModelConfig};

/// Positions whose angles are computed and copied at once.
const ANGLES_AT_ONCE: usize = 4096;

/// A model's layers on a GPU.
pub struct CudaDecoder {
    /// What the model's configuration says.
    pub config: ModelConfig,
    /// How products are cut.
    pub numerics: Numerics,
    weights: Weights,
    rope: RopeTable,
}

/// Where one runner's steps compute.
pub struct Lane<'a> {
    /// In order.
    pub stream: &'a Stream,
    /// Compiled for the model and for the pool's blocks.
    pub kernels: &'a Kernels,
    /// On this stream.
    pub cublas: &'a CublasStream,
    /// Room.
    pub buffers: &'a Buffers,
    /// Of all positions that occur.
    pub angles: &'a Angles,
    /// The pool.
    pub memory: &'a CudaMemory,
    /// Of its blocks.
    pub layout: &'a KvLayout,
}

/// Cosines and sines of all positions: f32 `[positions, head_dim]`, cosines first.
pub struct Angles {
    memory: Allocation,
}

impl CudaDecoder {
    /// A decoder with its weights on a GPU.
    pub fn new(stored: &Decoder, weights: Weights, numerics: Numerics) -> Self {
        let (config, rope) = (stored.config.clone(), stored.rope.clone());
        Self { config, numerics, weights, rope }
    }

    /// What kernels are compiled for, for blocks of so many tokens.
    pub fn kernel_shape(&self, block_size: usize, shared_bytes_max: usize) -> KernelShape {
        let dtype = self.dtype();
        KernelShape {
            head_dim: self.config.head_dim,
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            block_size,
            kv: dtype,
            activations: dtype,
            weights: dtype,
            neighbours: self.rope.pairing == RopePairing::Neighbours,
            shared_bytes_max,
        }
    }

    /// Errors: its weights are gone.
    pub fn check_weights(&self) -> Result<(), CudaFailure> {
        if self.weights.are_gone() { Err(CudaFailure::WeightsGone) } else { Ok(()) }
    }

    /// As what weights, activations and KV are stored.
    pub fn dtype(&self) -> Dtype {
        self.weights.layout.dtype
    }

    /// The layout of KV blocks for this model.
    pub fn kv_layout(&self, numerics_id: &str, block_size: usize) -> KvLayout {
        self.config.kv_layout(numerics_id, block_size, self.dtype().bytes())
    }

    /// Elements of the largest matrix whose weights are coded.
    pub fn widened_elements(&self) -> usize {
        let layers = self.weights.layout.layers.iter().flat_map(|layer| {
            [layer.query_key_value, layer.attention_output, layer.gate_up, layer.down]
        });
        let coded = layers.chain([self.weights.layout.output]).filter(|m| m.code.is_some());
        coded.map(|matrix| matrix.outputs * matrix.inputs).max().unwrap_or(0)
    }

    /// Bytes of the angles of so many positions.
    pub fn angles_bytes(&self, positions: usize) -> usize {
        positions * self.config.head_dim * size_of::<f32>()
    }

    /// The angles of so many positions, on the GPU. Errors: they do not fit.
    pub fn angles(&self, device: &Arc<Device>, positions: usize) -> Result<Angles, CudaFailure> {
        let head_dim = self.config.head_dim;
        let row_bytes = head_dim * size_of::<f32>();
        let memory = Allocation::new(device, self.angles_bytes(positions))?;
        let stream = Stream::new(device)?;
        let mut buffer = Pinned::take(device, ANGLES_AT_ONCE.min(positions) * row_bytes)?;
        for first in (0..positions).step_by(ANGLES_AT_ONCE) {
            let count = ANGLES_AT_ONCE.min(positions - first);
            let bytes = buffer.slice_mut(0..count * row_bytes);
            let mut row = vec![0.0f32; head_dim];
            for (offset, to) in bytes.chunks_exact_mut(row_bytes).enumerate() {
                let (cosines, sines) = row.split_at_mut(head_dim / 2);
                self.rope.at(first + offset, cosines, sines);
                for (to, number) in to.chunks_exact_mut(4).zip(&row) {
                    to.copy_from_slice(&number.to_ne_bytes());
                }
            }
            let to = memory.address() + (first * row_bytes) as u64;
            // SAFETY: the bytes are pinned and stay as they are until the wait.
            unsafe { stream.send(to, buffer.slice(0..count * row_bytes)) }?;
            stream.wait()?;
        }
        Ok(Angles { memory })
    }

    /// Puts the layers of a step on the stream, whose numbers are in the buffers' `inputs`. Then the
    /// rows whose logits are wanted lie in `wanted`, or all of them in `normed`.
    ///
    /// # Safety
    /// The numbers are those of the step, whose blocks are the caller's, and what the lane has is used
    /// by nobody else until the stream has run.
    pub unsafe fn layers(&self, lane: &Lane<'_>, step: &Step) -> Result<(), CudaFailure> {
        let Lane { buffers, .. } = *lane;
        let pass = Pass { decoder: self, lane, step };
        let ModelConfig { hidden_size: hidden, head_dim, .. } = self.config;
        let (rows, offsets) = (step.shape.rows, step.offsets);
        let input = |at: usize| buffers.inputs + at as u64;
        pass.launch(
            Embed {
                rows,
                hidden,
                vocabulary: self.config.vocabulary_size,
                out: buffers.x,
                table: self.weights.address(self.weights.layout.embedding),
                tokens: input(offsets.tokens),
            }
            .launch()?,
        )?;
        pass.launch(
            TakeRows {
                rows,
                row_bytes: head_dim * size_of::<f32>(),
                out: buffers.angles,
                table: lane.angles.memory.address(),
                numbers: input(offsets.positions),
            }
            .launch()?,
        )?;
        let layers = &self.weights.layout.layers;
        pass.normalise(0, layers[0].attention_norm)?;
        for (index, layer) in layers.iter().enumerate() {
            pass.attention(index, layer)?;
            if index + 1 == layers.len() && step.shape.wanted == 0 {
                return Ok(());
            }
            pass.feed_forward(layer)?;
            let next = layers.get(index + 1).map(|next| next.attention_norm);
            pass.normalise(buffers.delta, next.unwrap_or(self.weights.layout.final_norm))?;
        }
        if step.shape.wants_all {
            return Ok(());
        }
        let take = TakeRows {
            rows: step.shape.wanted,
            row_bytes: hidden * self.dtype().bytes(),
            out: buffers.wanted,
            table: buffers.normed,
            numbers: input(offsets.wanted),
        };
        pass.launch(take.launch()?)
    }

    /// Puts the logits of some of the wanted rows on the stream, into the buffers' `logits`.
    ///
    /// # Safety
    /// As for `layers`, behind which it is put.
    pub unsafe fn logits(
        &self,
        lane: &Lane<'_>,
        step: &Step,
        first: usize,
        rows: usize,
    ) -> Result<(), CudaFailure> {
        let pass = Pass { decoder: self, lane, step };
        let from = if step.shape.wants_all { lane.buffers.normed } else { lane.buffers.wanted };
        let from = from + (first * self.config.hidden_size * self.dtype().bytes()) as u64;
        pass.product(&self.weights.layout.output, rows, from, lane.buffers.logits)
    }
}

/// Whether vectors divide the sizes of a model. Errors: a sentence.
pub fn check_sizes(config: &ModelConfig) -> Result<(), String> {
    let sizes = [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("heads times head_dim", config.heads * config.head_dim),
    ];
    match sizes.iter().find(|(_, size)| !size.is_multiple_of(8)) {
        Some((name, size)) => Err(format!(
            "the CUDA kernels need a {name} that is a multiple of 8, not {size}: use the CPU"
        )),
        None => Ok(()),
    }
}

/// One step's way through the layers.
struct Pass<'a> {
    decoder: &'a CudaDecoder,
    lane: &'a Lane<'a>,
    step: &'a Step,
}

impl Pass<'_> {
    fn launch(&self, launch: Launch) -> Result<(), CudaFailure> {
        // SAFETY: this pass's addresses are those of the lane's buffers and of weights, which are as
        // large as the step; nobody else uses them by the promise of `layers`' caller.
        unsafe { self.lane.kernels.launch(self.lane.stream, &launch) }
    }

    /// Adds `delta` (or nothing where it is null) to all rows, and leaves them normalised.
    fn normalise(&self, delta: u64, norm: usize) -> Result<(), CudaFailure> {
        let Self { decoder, lane, step } = self;
        let normalise = AddAndNormalise {
            rows: step.shape.rows,
            hidden: decoder.config.hidden_size,
            x: lane.buffers.x,
            delta,
            weight: decoder.weights.address(norm),
            normalised: lane.buffers.normed,
            epsilon: decoder.config.rms_norm_epsilon,
        };
        self.launch(normalise.launch()?)
    }

    /// Adds what rows attend to, and leaves them normalised for `feed_forward`.
    fn attention(&self, index: usize, layer: &Layer) -> Result<(), CudaFailure> {
        let Self { decoder, lane, step } = self;
        let Lane { buffers, layout, memory, .. } = **lane;
        let (rows, weights) = (step.shape.rows, &decoder.weights);
        let planes = KvPlanes {
            pool: memory.base(),
            block_bytes: layout.block_bytes(),
            keys_at: layout.keys_offset(index),
            values_at: layout.values_offset(index),
        };
        let unbiased = Matrix { bias: None, ..layer.query_key_value };
        self.product(&unbiased, rows, buffers.normed, buffers.projected)?;
        let prepare = PrepareHeads {
            rows,
            projected: buffers.projected,
            bias: weights.address_or_null(layer.query_key_value.bias),
            query_norm: weights.address_or_null(layer.query_norm),
            key_norm: weights.address_or_null(layer.key_norm),
            angles: buffers.angles,
            slots: buffers.inputs + step.offsets.slots as u64,
            queries: buffers.queries,
            planes,
            epsilon: decoder.config.rms_norm_epsilon,
        };
        self.launch(prepare.launch(&lane.kernels.shape)?)?;
        let is_last = index + 1 == decoder.config.layers;
        if is_last && step.shape.wanted == 0 {
            // Nobody needs more than keys and values.
            return Ok(());
        }
        self.attend_rows(planes, layer.window)?;
        self.attend_tiles(planes, layer.window)?;
        self.product(&layer.attention_output, rows, buffers.attended, buffers.delta)?;
        self.normalise(buffers.delta, layer.mlp_norm)
    }

    fn tables(&self) -> Tables {
        let Self { lane, step, .. } = self;
        Tables {
            address: lane.buffers.inputs + step.offsets.tables as u64,
            table_blocks: step.shape.table_blocks(lane.kernels.shape.block_size),
        }
    }

    fn attend_rows(&self, planes: KvPlanes, window: Option<usize>) -> Result<(), CudaFailure> {
        let Self { lane, step, .. } = self;
        let (buffers, shape) = (lane.buffers, &lane.kernels.shape);
        let (parts, row_elements) = (step.shape.parts(), shape.heads * shape.head_dim);
        let at_once = Buffers::attending_rows(parts);
        for first in (0..step.shape.single_rows).step_by(at_once) {
            let number = |array: usize| buffers.inputs + (array + first * size_of::<u32>()) as u64;
            let element = (first * row_elements) as u64;
            let attend = AttendRows {
                rows: at_once.min(step.shape.single_rows - first),
                parts,
                window,
                planes,
                tables: self.tables(),
                table_of: number(step.offsets.table_of),
                positions: number(step.offsets.positions),
                queries: buffers.queries + element * size_of::<f32>() as u64,
                out: buffers.attended + element * shape.activations.bytes() as u64,
                partials: buffers.partials,
            };
            for launch in attend.launches(shape)? {
                self.launch(launch)?;
            }
        }
        Ok(())
    }

    fn attend_tiles(&self, planes: KvPlanes, window: Option<usize>) -> Result<(), CudaFailure> {
        let Self { lane, step, .. } = self;
        if step.shape.tiles == 0 {
            return Ok(());
        }
        let attend = AttendTiles {
            tiles: lane.buffers.inputs + step.offsets.tiles as u64,
            count: step.shape.tiles,
            window,
            planes,
            tables: self.tables(),
            queries: lane.buffers.queries,
            out: lane.buffers.attended,
        };
        self.launch(attend.launch(&lane.kernels.shape)?)
    }

    /// SwiGLU of the normalised rows, into `delta`.
    fn feed_forward(&self, layer: &Layer) -> Result<(), CudaFailure> {
        let Self { decoder, lane, step } = self;
        let (rows, buffers) = (step.shape.rows, lane.buffers);
        self.product(&layer.gate_up, rows, buffers.normed, buffers.gate_up)?;
        let multiply = SiluMultiply {
            rows,
            inner: decoder.config.intermediate_size,
            out: buffers.inner,
            both: buffers.gate_up,
        };
        self.launch(multiply.launch()?)?;
        self.product(&layer.down, rows, buffers.inner, buffers.delta)
    }

    /// y `[rows, outputs]` of x `[rows, inputs]`; behind both is room up to `PRODUCT_ROWS` rows.
    fn product(&self, matrix: &Matrix, rows: usize, x: u64, y: u64) -> Result<(), CudaFailure> {
        let weights = self.decoder.weights.of_matrix(matrix);
        let is_fixed = self.decoder.numerics == Numerics::Fixed;
        if !is_fixed && rows <= GEMV_ROWS_MAX {
            self.multiply_few(matrix, weights, rows, x, y)?;
        } else {
            self.multiply_many(matrix, weights, rows, x, y)?;
        }
        let Some(bias) = matrix.bias else { return Ok(()) };
        let (outputs, bias) = (matrix.outputs, self.decoder.weights.address(bias));
        self.launch(AddBias { rows, outputs, y, bias }.launch()?)
    }

    fn multiply_few(
        &self,
        &Matrix { outputs, inputs, .. }: &Matrix,
        weights: GemvWeights,
        rows: usize,
        x: u64,
        y: u64,
    ) -> Result<(), CudaFailure> {
        let gemv = Gemv { rows, outputs, inputs, y, x, weights, bias: 0 };
        self.launch(gemv.launch()?)
    }

    /// By cuBLAS. Where shapes are fixed, so many rows at a time: what lies behind the last ones is
    /// computed too, and read by nobody.
    fn multiply_many(
        &self,
        &Matrix { outputs, inputs, .. }: &Matrix,
        weights: GemvWeights,
        rows: usize,
        x: u64,
        y: u64,
    ) -> Result<(), CudaFailure> {
        let (dtype, out) = (self.decoder.dtype(), self.lane.buffers.widened);
        let widen = WidenWeights { out, weights, count: outputs * inputs };
        let weights = match (weights, widen.launch()?) {
            (GemvWeights::Dense { weights, .. }, _) => weights,
            (_, Some(launch)) => {
                self.launch(launch)?;
                out
            }
            (_, None) => unreachable!("what is coded is widened"),
        };
        let at_once = match self.decoder.numerics {
            Numerics::Fixed => PRODUCT_ROWS,
            Numerics::Fast => rows,
        };
        for first in (0..rows).step_by(at_once) {
            let row = |row_elements: usize| (first * row_elements * dtype.bytes()) as u64;
            let (x, y) = (x + row(inputs), y + row(outputs));
            let gemm = Gemm { rows: at_once, outputs, inputs, y, x, weights, dtype };
            // SAFETY: as in `launch`.
            unsafe { self.lane.cublas.multiply(&gemm) }?;
        }
        Ok(())
    }
}

impl From<CudaError> for CudaFailure {
    fn from(error: CudaError) -> Self {
        Self::Driver(error)
    }
}
