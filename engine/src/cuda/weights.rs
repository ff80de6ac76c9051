//! A model's weights in the memory of a GPU: one allocation, whose content is a function of the model
//! alone.

use std::sync::Arc;

use cuda_driver::{Allocation, Device, Pinned, Stream};
use cuda_kernels::{Dtype, GemvWeights, QuantizedMatrix, WeightCode, quantize_rows};
use half::{bf16, f16};

use super::CudaFailure;
use super::keeper::{Kept, Launch};
use crate::kernels::{QuantFormat, WeightData};
use crate::model::{Decoder, Layer as StoredLayer, Linear as StoredLinear, WeightMatrix};

/// Where parts begin: what the widest loads want, and cuBLAS likes.
const ALIGNMENT: usize = 256;
/// Bytes that are on their way to the GPU at once.
const UPLOAD_BYTES: usize = 16 << 20;
/// Elements that share a scale, as in the files (`Q8_0`).
const Q8_GROUP: usize = 32;
/// The same in FP8: the first of these that divides a row.
const FP8_GROUPS: [usize; 4] = [128, 64, 32, 16];

/// Where everything lies: offsets into the allocation.
#[derive(Debug)]
pub struct Layout {
    /// What all dense numbers are.
    pub dtype: Dtype,
    /// `[vocabulary_size, hidden_size]`
    pub embedding: usize,
    /// The decoder's layers.
    pub layers: Vec<Layer>,
    /// `[hidden_size]`
    pub final_norm: usize,
    /// To `[vocabulary_size]`.
    pub output: Matrix,
    /// Of the allocation.
    pub bytes: usize,
}

/// One decoder layer; its parts are those of `model::Layer`.
#[derive(Debug)]
pub struct Layer {
    /// `[hidden_size]`
    pub attention_norm: usize,
    /// To `[heads + 2 kv_heads, head_dim]`.
    pub query_key_value: Matrix,
    /// From `[heads, head_dim]`.
    pub attention_output: Matrix,
    /// `[head_dim]`
    pub query_norm: Option<usize>,
    /// `[head_dim]`
    pub key_norm: Option<usize>,
    /// `[hidden_size]`
    pub mlp_norm: usize,
    /// To `[2, intermediate_size]`.
    pub gate_up: Matrix,
    /// From `[intermediate_size]`.
    pub down: Matrix,
    /// Tokens that a token sees; all where absent.
    pub window: Option<usize>,
}

/// A matrix `[outputs, inputs]`, and the bias of its product.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Rows.
    pub outputs: usize,
    /// Elements of a row.
    pub inputs: usize,
    /// Where the numbers, or their codes, lie.
    pub at: usize,
    /// How numbers are coded, where they are.
    pub code: Option<Code>,
    /// `[outputs]`
    pub bias: Option<usize>,
}

/// How the numbers of a matrix are coded in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// How one is.
    pub code: WeightCode,
    /// Where scales lie: f32 `[outputs, inputs / group]`.
    pub scales: usize,
    /// Elements that share a scale.
    pub group: usize,
}

/// As what matrices lie on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// As their files have them: codes of `Q8_0` stay, other quantised ones are widened.
    AsStored,
    /// Matrices are rounded to FP8, with a scale for up to 128; not the embedding.
    Fp8,
}

/// Weights on a GPU.
pub struct Weights {
    /// Where everything lies.
    pub layout: Layout,
    memory: Memory,
}

enum Memory {
    /// This process's.
    Own(Allocation),
    /// Another's.
    Kept(Kept),
}

impl Weights {
    /// Brings a decoder's weights to a GPU. Errors: there is no room for them.
    pub fn upload(
        stored: &Decoder,
        device: &Arc<Device>,
        format: WeightFormat,
    ) -> Result<Self, CudaFailure> {
        let (layout, memory) = upload(stored, device, format)?;
        Ok(Self { layout, memory: Memory::Own(memory) })
    }

    /// Uses those that a keeper has, which is started where there is none; its own where that has too
    /// many users. `weights_id` names the model. Errors: a sentence.
    pub fn kept(
        stored: &Decoder,
        device: &Arc<Device>,
        format: WeightFormat,
        launch: &Launch,
        weights_id: &str,
    ) -> Result<Self, String> {
        let layout = Plan::new(stored, format).layout(stored);
        let uuid = device.uuid().map_err(|error| error.to_string())?;
        // All that decides which bytes lie where.
        let content = format!("{weights_id} {layout:?} {}", env!("CARGO_PKG_VERSION"));
        let name = format!("weights-{uuid}-{}", &blake3::hash(content.as_bytes()).to_hex()[..16]);
        match Kept::find(device, launch, &name)? {
            Some(kept) => Ok(Self { layout, memory: Memory::Kept(kept) }),
            None => Self::upload(stored, device, format).map_err(|error| error.to_string()),
        }
    }

    /// Whether they are gone, with the process that kept them.
    pub fn are_gone(&self) -> bool {
        matches!(&self.memory, Memory::Kept(kept) if kept.is_gone())
    }

    /// The address of what lies at an offset.
    pub fn address(&self, at: usize) -> u64 {
        let base = match &self.memory {
            Memory::Own(memory) => memory.address(),
            Memory::Kept(kept) => kept.address(),
        };
        base + at as u64
    }

    /// The same of what may be absent: null there.
    pub fn address_or_null(&self, at: Option<usize>) -> u64 {
        at.map_or(0, |at| self.address(at))
    }

    /// A matrix as products want to see it.
    pub fn of_matrix(&self, matrix: &Matrix) -> GemvWeights {
        let at = self.address(matrix.at);
        let Some(Code { code, scales, group }) = matrix.code else {
            return GemvWeights::Dense { weights: at, dtype: self.layout.dtype };
        };
        let (codes, scales) = (at, self.address(scales));
        match code {
            WeightCode::Int8 => GemvWeights::Int8 { codes, scales, group },
            WeightCode::Fp8 => GemvWeights::Fp8 { codes, scales, group },
        }
    }
}

/// Brings a decoder's weights to a GPU, and says where they lie. Errors: there is no room for them.
pub fn upload(
    stored: &Decoder,
    device: &Arc<Device>,
    format: WeightFormat,
) -> Result<(Layout, Allocation), CudaFailure> {
    let mut plan = Plan::new(stored, format);
    let layout = plan.layout(stored);
    let memory = Allocation::new(device, layout.bytes)?;
    let mut upload = Upload::new(memory.address(), device)?;
    for part in &plan.parts {
        part.write(plan.dtype, &mut upload)?;
    }
    upload.finish()?;
    Ok((layout, memory))
}

/// For a model whose matrices are like this one.
pub fn dtype_of(matrix: &WeightMatrix) -> Dtype {
    match matrix.matrix().data {
        WeightData::F32(_) => Dtype::F32,
        WeightData::F16(_) => Dtype::F16,
        // Some models' activations are too large for f16.
        WeightData::Bf16(_) | WeightData::Quantized { .. } => Dtype::Bf16,
    }
}

/// What goes where, in order.
struct Plan<'a> {
    dtype: Dtype,
    format: WeightFormat,
    parts: Vec<Part<'a>>,
    end: usize,
}

/// Something that is written to the GPU.
struct Part<'a> {
    at: usize,
    content: Content<'a>,
}

enum Content<'a> {
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
    fn new(stored: &Decoder, format: WeightFormat) -> Self {
        let dtype = dtype_of(stored.layers[0].key.weight());
        Self { dtype, format, parts: Vec::new(), end: 0 }
    }

    fn layout(&mut self, stored: &'a Decoder) -> Layout {
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

impl Part<'_> {
    fn write(&self, dtype: Dtype, upload: &mut Upload) -> Result<(), CudaFailure> {
        upload.seek(self.at)?;
        match self.content {
            Content::Vector(vector) => upload.write(&stored(vector, dtype)),
            Content::Dense(matrix) => {
                let [outputs, inputs] = matrix.shape();
                let matrix = matrix.matrix();
                let mut row = vec![0.0; inputs];
                for index in 0..outputs {
                    match matrix.data {
                        WeightData::Bf16(data) if dtype == Dtype::Bf16 => {
                            let row = &data[index * inputs..(index + 1) * inputs];
                            upload.write_each(row, |number| number.to_ne_bytes())?;
                        }
                        _ => {
                            matrix.copy_row(index, &mut row);
                            upload.write(&stored(&row, dtype))?;
                        }
                    }
                }
                Ok(())
            }
            Content::Codes(matrix) => each_q8_block(matrix, |_scale, codes| upload.write(codes)),
            Content::Scales(matrix) => {
                each_q8_block(matrix, |scale, _codes| upload.write(&scale.to_ne_bytes()))
            }
            Content::Fp8 { matrix, scales, group } => {
                let rounded = rounded_to_fp8(matrix, group);
                rounded.iter().try_for_each(|part| upload.write(&part.codes))?;
                upload.seek(scales)?;
                rounded
                    .iter()
                    .try_for_each(|part| upload.write_each(&part.scales, f32::to_ne_bytes))
            }
        }
    }
}

/// A matrix as FP8: in parts of consecutive rows, one for each CPU.
fn rounded_to_fp8(matrix: &WeightMatrix, group: usize) -> Vec<QuantizedMatrix> {
    let ([outputs, inputs], matrix) = (matrix.shape(), matrix.matrix());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let rows_each = outputs.div_ceil(cpus).max(1);
    let round = &|first: usize| {
        let rows = first..(first + rows_each).min(outputs);
        let mut numbers = vec![0.0; rows.len() * inputs];
        for (row, to) in rows.zip(numbers.chunks_exact_mut(inputs)) {
            matrix.copy_row(row, to);
        }
        quantize_rows(&numbers, group, WeightCode::Fp8)
    };
    std::thread::scope(|scope| {
        let parts = (0..outputs).step_by(rows_each);
        let threads: Vec<_> = parts.map(|first| scope.spawn(move || round(first))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|rounded| rounded.expect("rounding does not panic")).collect()
    })
}

/// The blocks of `Q8_0`: an f16 scale, and 32 codes of two's complement.
fn each_q8_block(
    matrix: &WeightMatrix,
    mut write: impl FnMut(f32, &[u8]) -> Result<(), CudaFailure>,
) -> Result<(), CudaFailure> {
    let WeightData::Quantized { bytes, .. } = matrix.matrix().data else { return Ok(()) };
    for block in bytes.chunks_exact(2 + Q8_GROUP) {
        let (scale, codes) = block.split_at(2);
        write(f16::from_le_bytes([scale[0], scale[1]]).to_f32(), codes)?;
    }
    Ok(())
}

/// Numbers as the GPU reads them.
fn stored(numbers: &[f32], dtype: Dtype) -> Vec<u8> {
    let numbers = numbers.iter();
    match dtype {
        Dtype::F32 => numbers.flat_map(|number| number.to_ne_bytes()).collect(),
        Dtype::Bf16 => numbers.flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
        Dtype::F16 => numbers.flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
    }
}

/// Bytes on their way to the GPU: one buffer is filled while another is copied.
struct Upload {
    stream: Stream,
    buffers: [Pinned; 2],
    current: usize,
    filled: usize,
    /// Where what is in the current buffer goes.
    to: u64,
    base: u64,
}

impl Upload {
    fn new(base: u64, device: &Arc<Device>) -> Result<Self, CudaFailure> {
        let buffer = || Pinned::take(device, UPLOAD_BYTES);
        let (stream, buffers) = (Stream::new(device)?, [buffer()?, buffer()?]);
        Ok(Self { stream, buffers, current: 0, filled: 0, to: base, base })
    }

    fn seek(&mut self, at: usize) -> Result<(), CudaFailure> {
        let to = self.base + at as u64;
        if to != self.to + self.filled as u64 {
            self.flush()?;
            self.to = to;
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), CudaFailure> {
        while !bytes.is_empty() {
            let room = UPLOAD_BYTES - self.filled;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let end = self.filled + now.len();
            self.buffers[self.current].slice_mut(self.filled..end).copy_from_slice(now);
            self.filled = end;
            if self.filled == UPLOAD_BYTES {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn write_each<T: Copy, const N: usize>(
        &mut self,
        numbers: &[T],
        to_bytes: fn(T) -> [u8; N],
    ) -> Result<(), CudaFailure> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| to_bytes(*number)).collect();
        self.write(&bytes)
    }

    fn flush(&mut self) -> Result<(), CudaFailure> {
        // The other buffer's copy has to end before it is filled.
        self.stream.wait()?;
        let bytes = self.buffers[self.current].slice(0..self.filled);
        // SAFETY: the buffer is pinned, and not written to before the wait of the next flush; the
        // plan has room for the bytes.
        unsafe { self.stream.send(self.to, bytes) }?;
        self.to += self.filled as u64;
        (self.filled, self.current) = (0, 1 - self.current);
        Ok(())
    }

    fn finish(mut self) -> Result<(), CudaFailure> {
        self.flush()?;
        Ok(self.stream.wait()?)
    }
}
