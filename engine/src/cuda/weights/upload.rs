//! Brings the parts of a plan to the GPU, in the form that its kernels read.

use std::sync::Arc;

use cuda_driver::{Device, Pinned, Stream};
use cuda_kernels::{Dtype, QuantizedMatrix, WeightCode, quantize_rows};
use half::{bf16, f16};

use super::plan::{Content, Part, Q8_GROUP};
use crate::cuda::CudaFailure;
use crate::kernels::WeightData;
use crate::model::WeightMatrix;

/// Bytes that are on their way to the GPU at once.
const UPLOAD_BYTES: usize = 16 << 20;

impl Part<'_> {
    /// Errors: the GPU did not take it.
    pub fn write(&self, dtype: Dtype, upload: &mut Upload) -> Result<(), CudaFailure> {
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
pub struct Upload {
    stream: Stream,
    buffers: [Pinned; 2],
    current: usize,
    filled: usize,
    /// Where what is in the current buffer goes.
    to: u64,
    base: u64,
}

impl Upload {
    /// To an allocation that begins there.
    pub fn new(base: u64, device: &Arc<Device>) -> Result<Self, CudaFailure> {
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

    /// Waits until everything is there.
    pub fn finish(mut self) -> Result<(), CudaFailure> {
        self.flush()?;
        Ok(self.stream.wait()?)
    }
}
