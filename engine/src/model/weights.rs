//! Weights in files, used straight from `mmap`: processes on one machine share the page cache, and
//! loading costs nothing but page faults.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

use super::safetensors_files;
use crate::LoadError;
use crate::kernels::{Element, Matrix, QuantFormat, RopePairing, WeightData};

const SUPPORTED: &str = "F32, BF16 and F16, and in GGUF files Q8_0, Q4_0, Q5_0, Q4_K and Q6_K";

/// All tensors of a model, by their Hugging Face names.
pub struct Weights {
    /// The directory or the file.
    path: PathBuf,
    tensors: HashMap<String, StoredTensor>,
    /// The names of those that were asked for.
    read: RefCell<BTreeSet<String>>,
    /// What the model's own files call a tensor.
    spell: fn(&str) -> String,
    /// The mapped files in name order, for the numerics id.
    pub files: Vec<Arc<Mmap>>,
    /// In which order the rows of queries and keys lie.
    pub rope_pairing: RopePairing,
}

/// Where a tensor lies.
#[derive(Clone)]
pub struct StoredTensor {
    /// The file.
    pub file: Arc<Mmap>,
    /// Its bytes there, as many as shape and type ask for.
    pub bytes: Range<usize>,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub kind: StoredType,
}

/// How numbers are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredType {
    /// 4-byte floats.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Blocks of codes with scales; rows are whole blocks.
    Quantized(QuantFormat),
    /// What is refused by this name where it is asked for.
    Other(String),
}

impl StoredType {
    /// Where tensors must begin; `None` for those that are not supported.
    fn alignment(&self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::Bf16 | Self::F16 => Some(2),
            Self::Quantized(_) => Some(1),
            Self::Other(_) => None,
        }
    }
}

/// A weight matrix that keeps its file mapped. Borrow it for arithmetic with `matrix`.
pub struct WeightMatrix {
    tensor: StoredTensor,
    outputs: usize,
    inputs: usize,
}

impl Weights {
    /// Maps and checks all files of a directory in Hugging Face layout.
    pub fn open(directory: &Path) -> Result<Self, LoadError> {
        let mut weights = Self::new(directory, RopePairing::Halves, str::to_string);
        safetensors_files::open(directory, &mut weights)?;
        Ok(weights)
    }

    /// No tensors yet. `spell` gives what the files at `path` call a tensor.
    pub fn new(path: &Path, rope_pairing: RopePairing, spell: fn(&str) -> String) -> Self {
        let (tensors, read, files) = Default::default();
        Self { path: path.into(), tensors, read, spell, files, rope_pairing }
    }

    /// A tensor that nobody asked for, as the model's own files call it.
    pub fn unread(&self) -> Option<String> {
        let read = self.read.borrow();
        let mut unread = self.tensors.keys().filter(|name| !read.contains(*name));
        unread.next().map(|name| (self.spell)(name))
    }

    /// Adds a tensor under its Hugging Face name.
    pub fn insert(&mut self, name: String, tensor: StoredTensor) {
        self.tensors.insert(name, tensor);
    }

    /// Matrices of floating-point numbers whose rows are multiples of `row_multiple`, in order of their
    /// names.
    pub fn wide_matrices(&self, row_multiple: usize) -> Vec<(String, WeightMatrix)> {
        // What is not aligned is refused where it is asked for.
        let is_usable = |tensor: &StoredTensor| match tensor.kind.alignment() {
            Some(bytes) => bytes > 1 && tensor.bytes.start.is_multiple_of(bytes),
            None => false,
        };
        let matrix = |(name, tensor): (&String, &StoredTensor)| match tensor.shape[..] {
            [outputs, inputs] if is_usable(tensor) && inputs.is_multiple_of(row_multiple) => {
                Some((name.clone(), WeightMatrix { tensor: tensor.clone(), outputs, inputs }))
            }
            _ => None,
        };
        let mut matrices: Vec<_> = self.tensors.iter().filter_map(matrix).collect();
        matrices.sort_by(|(one, _), (other, _)| one.cmp(other));
        matrices
    }

    /// A matrix of exactly this shape.
    pub fn matrix(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<WeightMatrix, LoadError> {
        let tensor = self.tensor(name, &[outputs, inputs])?;
        Ok(WeightMatrix { tensor, outputs, inputs })
    }

    /// A short vector (a norm's weights), widened.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, &[len])?;
        let as_row = WeightMatrix { tensor, outputs: 1, inputs: len };
        let mut row = vec![0.0; len];
        as_row.matrix().copy_row(0, &mut row);
        Ok(row)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<StoredTensor, LoadError> {
        let corrupt = |problem| LoadError::Corrupt { path: self.path.clone(), problem };
        let tensor = self.tensors.get(name);
        self.read.borrow_mut().insert(name.to_string());
        let name = (self.spell)(name);
        let tensor = tensor.ok_or_else(|| corrupt(format!("tensor {name} is missing")))?;
        if tensor.shape != shape {
            let found = &tensor.shape;
            return Err(corrupt(format!(
                "tensor {name} has shape {found:?}, the configuration implies {shape:?}"
            )));
        }
        let Some(alignment) = tensor.kind.alignment() else {
            let what = format!("type {} (tensor {name})", tensor.kind.name());
            let path = self.path.clone();
            return Err(LoadError::Unsupported { path, what, supported: SUPPORTED });
        };
        if !tensor.bytes.start.is_multiple_of(alignment) {
            return Err(corrupt(format!("tensor {name} is not aligned to its element size")));
        }
        Ok(tensor.clone())
    }
}

impl StoredType {
    fn name(&self) -> String {
        match self {
            Self::Other(name) => name.clone(),
            known => format!("{known:?}"),
        }
    }
}

impl WeightMatrix {
    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inputs]
    }

    /// The matrix, borrowed from its mapped file.
    pub fn matrix(&self) -> Matrix<'_> {
        let data = match &self.tensor.kind {
            StoredType::F32 => WeightData::F32(self.elements::<f32>()),
            StoredType::Bf16 => WeightData::Bf16(self.elements::<bf16>()),
            StoredType::F16 => WeightData::F16(self.elements::<f16>()),
            StoredType::Quantized(format) => {
                WeightData::Quantized { format: *format, bytes: self.bytes() }
            }
            StoredType::Other(name) => unreachable!("type {name} was refused at load"),
        };
        Matrix { data, outputs: self.outputs, inputs: self.inputs }
    }

    fn elements<E: Element>(&self) -> &[E] {
        let data = self.bytes();
        // SAFETY: aligned (checked at load; maps are page-aligned), in bounds by the slice, and
        // every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len() / size_of::<E>()) }
    }

    fn bytes(&self) -> &[u8] {
        &self.tensor.file[self.tensor.bytes.clone()]
    }
}
