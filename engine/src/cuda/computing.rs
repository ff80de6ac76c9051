//! One worker's steps on a GPU, one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use cuda_driver::{Function, Graph, Pinned, Stream};
use cuda_kernels::{
    Dtype, KernelShape, NOT_DECIDED, RowSampling, SAMPLING_BYTES, Sample, sampling_bytes,
};
use half::{bf16, f16};
use kv_transfer::KvLayout;
use kv_transfer::cuda::CudaMemory;

use super::CudaFailure;
use super::buffers::{Buffers, LOGIT_ROWS, Places, StepSizes};
use super::card::{Card, Kernels};
use super::cublas::{CublasStream, WORKSPACE_BYTES};
use super::decoder::{Angles, CudaDecoder, Lane};
use super::step::{Step, StepShape};
use crate::model::Span;

/// Shapes of steps whose work is kept; of more, the one that was not used for longest goes.
const GRAPHS_MAX: usize = 128;

/// How a row is sampled whose token nobody asked for.
const ANYHOW: RowSampling =
    RowSampling { random: 0.0, temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0 };

/// See the module's description.
pub struct Computing {
    // Before the stream that they run on.
    graphs: Graphs,
    kernels: Arc<Kernels>,
    cublas: CublasStream,
    stream: Stream,
    buffers: Buffers,
    angles: Angles,
    /// A step's numbers on their way to the GPU.
    inputs: Pinned,
    /// Chosen tokens on their way back.
    chosen: Pinned,
}

/// Work of steps, by their shape. A shape that comes for the second time is captured: libraries load
/// what they need the first time, which cannot be captured.
#[derive(Default)]
struct Graphs {
    kept: HashMap<StepShape, Kept>,
    /// Steps so far.
    steps: u64,
    /// Capturing failed once.
    is_off: bool,
}

struct Kept {
    /// Absent after the first time.
    graph: Option<Graph>,
    last_used: u64,
}

/// What became of a row whose logits were wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// The token that was chosen on the GPU.
    Token(u32),
    /// `[vocabulary_size]`: the host chooses.
    Logits(Vec<f32>),
}

impl Row {
    /// The logits; none where a token was chosen.
    pub fn into_logits(self) -> Vec<f32> {
        match self {
            Self::Logits(logits) => logits,
            Self::Token(_) => Vec::new(),
        }
    }
}

impl Computing {
    /// For blocks of so many tokens, and for steps of these sizes at most. Errors: kernels do not
    /// compile, or there is no room.
    pub fn new(
        card: &Card,
        decoder: &CudaDecoder,
        block_size: usize,
        sizes: &StepSizes,
    ) -> Result<Self, CudaFailure> {
        let shape = decoder.kernel_shape(block_size, card.shared_bytes_max());
        let kernels = card.kernels(&shape).map_err(CudaFailure::Kernels)?;
        let device = &card.device;
        let stream = Stream::new(device)?;
        let widened = decoder.widened_elements();
        let places = Places::new(&decoder.config, &kernels.shape, sizes, widened);
        let buffers = Buffers::new(device, &places)?;
        Ok(Self {
            graphs: Graphs::default(),
            kernels,
            cublas: CublasStream::new(&card.cublas, &stream)?,
            stream,
            angles: decoder.angles(device, sizes.context_tokens)?,
            inputs: Pinned::take(device, buffers.inputs_bytes)?,
            chosen: Pinned::take(device, LOGIT_ROWS * size_of::<u32>())?,
            buffers,
        })
    }

    /// Bytes of the GPU that one takes.
    pub fn bytes(decoder: &CudaDecoder, shape: &KernelShape, sizes: &StepSizes) -> usize {
        let widened = decoder.widened_elements();
        let buffers = Places::new(&decoder.config, shape, sizes, widened).bytes;
        buffers + decoder.angles_bytes(sizes.context_tokens) + WORKSPACE_BYTES
    }

    /// What copies blocks between pools, for the pool that is computed in.
    pub fn copies(&self) -> Option<Function> {
        self.kernels.copies()
    }

    /// Computes spans, writes their KV into `memory`, and says what became of each row whose logits
    /// they want, in order. `samplings` has an entry per such row: how its token is chosen, or none
    /// where its logits are wanted. Errors: the GPU failed.
    pub fn run(
        &mut self,
        decoder: &CudaDecoder,
        spans: &[Span<'_>],
        layout: &KvLayout,
        memory: &CudaMemory,
        samplings: &[Option<RowSampling>],
    ) -> Result<Vec<Row>, CudaFailure> {
        let step = Step::of(spans, layout, &self.kernels.shape);
        let places = places(spans, &step.order);
        let mut in_order: Vec<Option<RowSampling>> =
            places.iter().map(|place| samplings[*place]).collect();
        in_order.resize(step.shape.wanted, Some(ANYHOW));
        self.send(&step, &in_order)?;
        let is_kept = step.shape.is_decode() && step.shape.rows <= LOGIT_ROWS;
        let Self { graphs, kernels, cublas, stream, buffers, angles, chosen, .. } = self;
        let lane = Lane { stream, kernels, cublas, buffers, angles, memory, layout };
        let work = Work { decoder, lane: &lane, step: &step };
        match is_kept {
            true => graphs.run(&work)?,
            // SAFETY: what the lane has is this worker's, and the step's numbers were sent before.
            false => unsafe { decoder.layers(&lane, &step) }?,
        }
        let mut rows = Vec::with_capacity(in_order.len());
        for (index, samplings) in in_order.chunks(LOGIT_ROWS).enumerate() {
            if !is_kept {
                work.choose(index * LOGIT_ROWS, samplings.len())?;
            }
            rows.extend(work.fetch(samplings, chosen)?);
        }
        if rows.is_empty() {
            // Nothing was fetched, which waits.
            stream.wait()?;
        }
        // Only now, when the step has ended: who copies blocks of it would else wait for the next one.
        // SAFETY: the stream is of the device's primary context.
        unsafe { memory.record_written(stream.handle().0) }?;
        decoder.check_weights()?;
        let mut by_place = vec![Row::Token(0); places.len()];
        for (place, row) in places.into_iter().zip(rows) {
            by_place[place] = row;
        }
        Ok(by_place)
    }

    fn send(&mut self, step: &Step, samplings: &[Option<RowSampling>]) -> Result<(), CudaFailure> {
        let samplings: Vec<RowSampling> =
            samplings.iter().map(|sampling| sampling.unwrap_or(ANYHOW)).collect();
        let samplings = sampling_bytes(&samplings);
        debug_assert_eq!(samplings.len(), step.shape.wanted * SAMPLING_BYTES);
        let (end, at) = (step.offsets.bytes, step.offsets.samplings);
        assert!(end <= self.buffers.inputs_bytes, "a step no larger than was said");
        self.inputs.slice_mut(0..end).copy_from_slice(&step.bytes);
        self.inputs.slice_mut(at..at + samplings.len()).copy_from_slice(&samplings);
        // SAFETY: pinned, and not written to before the next step, which comes after this one's wait.
        unsafe { self.stream.send(self.buffers.inputs, self.inputs.slice(0..end)) }?;
        Ok(())
    }
}

/// Of each row that the step wants, its place among those of the spans as they were given.
fn places(spans: &[Span<'_>], order: &[usize]) -> Vec<usize> {
    let firsts: Vec<usize> = spans
        .iter()
        .scan(0, |end, span| {
            *end += span.logits;
            Some(*end - span.logits)
        })
        .collect();
    order.iter().flat_map(|index| firsts[*index]..firsts[*index] + spans[*index].logits).collect()
}

/// A step, and where it is computed.
struct Work<'a> {
    decoder: &'a CudaDecoder,
    lane: &'a Lane<'a>,
    step: &'a Step,
}

impl Work<'_> {
    /// Puts the whole step on the stream.
    fn submit(&self) -> Result<(), CudaFailure> {
        // SAFETY: what the lane has is this worker's, and the step's numbers were sent before.
        unsafe { self.decoder.layers(self.lane, self.step) }?;
        self.choose(0, self.step.shape.wanted)
    }

    /// Puts logits of some of the wanted rows on the stream, and the choice of their tokens.
    fn choose(&self, first: usize, rows: usize) -> Result<(), CudaFailure> {
        let Lane { buffers, stream, kernels, .. } = self.lane;
        let samplings = self.step.offsets.samplings + first * SAMPLING_BYTES;
        let sample = Sample {
            rows,
            vocabulary: self.decoder.config.vocabulary_size,
            chosen: buffers.chosen,
            logits: buffers.logits,
            samplings: buffers.inputs + samplings as u64,
        };
        // SAFETY: as in `submit`.
        unsafe {
            self.decoder.logits(self.lane, self.step, first, rows)?;
            for launch in sample.launches()? {
                kernels.launch(stream, &launch)?;
            }
        }
        Ok(())
    }

    /// Waits for what `choose` made.
    fn fetch(
        &self,
        samplings: &[Option<RowSampling>],
        chosen: &mut Pinned,
    ) -> Result<Vec<Row>, CudaFailure> {
        let Lane { buffers, stream, .. } = self.lane;
        let bytes = samplings.len() * size_of::<u32>();
        // SAFETY: pinned, and looked at after the wait.
        unsafe { stream.fetch(chosen.slice_mut(0..bytes), buffers.chosen) }?;
        stream.wait()?;
        let tokens = chosen.slice(0..bytes).as_chunks().0.iter();
        let tokens: Vec<u32> = tokens.map(|bytes| u32::from_ne_bytes(*bytes)).collect();
        let is_decided = |row: usize| samplings[row].is_some() && tokens[row] != NOT_DECIDED;
        let undecided: Vec<usize> = (0..tokens.len()).filter(|row| !is_decided(*row)).collect();
        let mut logits = self.fetch_logits(&undecided)?.into_iter();
        let row = |(row, token): (usize, u32)| match is_decided(row) {
            true => Row::Token(token),
            false => Row::Logits(logits.next().unwrap_or_default()),
        };
        Ok(tokens.iter().copied().enumerate().map(row).collect())
    }

    fn fetch_logits(&self, rows: &[usize]) -> Result<Vec<Vec<f32>>, CudaFailure> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let Lane { buffers, stream, .. } = self.lane;
        let (dtype, vocabulary) = (self.decoder.dtype(), self.decoder.config.vocabulary_size);
        let row_bytes = vocabulary * dtype.bytes();
        let mut room = Pinned::take(stream.device(), rows.len() * row_bytes)?;
        let mut fetch = |(index, row): (usize, &usize)| {
            let to = room.slice_mut(index * row_bytes..(index + 1) * row_bytes);
            // SAFETY: pinned, and looked at after the wait.
            unsafe { stream.fetch(to, buffers.logits + (row * row_bytes) as u64) }
        };
        let fetched = rows.iter().enumerate().try_for_each(&mut fetch);
        // Also where it failed: the room is then somebody else's.
        stream.wait()?;
        fetched?;
        let bytes = room.slice(0..rows.len() * row_bytes);
        Ok(bytes.chunks_exact(row_bytes).map(|row| numbers(row, dtype)).collect())
    }
}

/// Numbers as the GPU wrote them.
fn numbers(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|x| f32::from_ne_bytes(*x)).collect(),
        Dtype::Bf16 => {
            bytes.as_chunks().0.iter().map(|x| bf16::from_ne_bytes(*x).to_f32()).collect()
        }
        Dtype::F16 => bytes.as_chunks().0.iter().map(|x| f16::from_ne_bytes(*x).to_f32()).collect(),
    }
}

impl Graphs {
    fn run(&mut self, work: &Work<'_>) -> Result<(), CudaFailure> {
        let shape = work.step.shape;
        if self.is_off {
            return work.submit();
        }
        let stream = work.lane.stream;
        self.steps += 1;
        let last_used = self.steps;
        match self.kept.get_mut(&shape) {
            Some(Kept { graph: Some(graph), last_used: last }) => {
                *last = last_used;
                // SAFETY: it works with this worker's buffers, as `submit` does.
                return Ok(unsafe { stream.run(graph) }?);
            }
            Some(Kept { graph: None, .. }) => {}
            None => {
                self.make_room();
                self.kept.insert(shape, Kept { graph: None, last_used });
                return work.submit();
            }
        }
        match stream.capture(|| work.submit()) {
            Ok(graph) => {
                // SAFETY: as above.
                unsafe { stream.run(&graph) }?;
                self.kept.insert(shape, Kept { graph: Some(graph), last_used });
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "steps cannot be captured on this GPU, and are submitted \
                    piece by piece");
                self.is_off = true;
                work.submit()
            }
        }
    }

    fn make_room(&mut self) {
        if self.kept.len() < GRAPHS_MAX {
            return;
        }
        let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.last_used);
        if let Some(oldest) = oldest.map(|(shape, _)| *shape) {
            self.kept.remove(&oldest);
        }
    }
}
