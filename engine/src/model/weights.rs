//! Weights in safetensors files, used straight from `mmap`: processes on one machine share the
//! page cache, and loading costs nothing but page faults.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::LoadError;
use crate::kernels::{Element, Matrix, WeightData};

const ADVICE: &str = "MODEL must hold its weights as model.safetensors or as \
    model.safetensors.index.json with its shards";

/// All tensors of a model directory, by name.
pub struct Weights {
    directory: PathBuf,
    tensors: HashMap<String, StoredTensor>,
    /// The mapped files in name order, for the numerics id.
    pub files: Vec<Arc<Mmap>>,
}

#[derive(Clone)]
struct StoredTensor {
    file: Arc<Mmap>,
    start: usize,
    bytes: usize,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// A weight matrix that keeps its file mapped. Borrow it for arithmetic with `matrix`.
pub struct WeightMatrix {
    tensor: StoredTensor,
    outputs: usize,
    inputs: usize,
}

impl Weights {
    /// Maps and checks all files of a directory.
    pub fn open(directory: &Path) -> Result<Self, LoadError> {
        let mut weights =
            Self { directory: directory.into(), tensors: HashMap::new(), files: Vec::new() };
        for name in shard_names(directory)? {
            weights.add_file(&directory.join(name))?;
        }
        Ok(weights)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), LoadError> {
        let unreadable =
            |source| LoadError::Unreadable { path: path.into(), source, advice: ADVICE };
        let corrupt = |problem: String| LoadError::Corrupt { path: path.into(), problem };
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: the file is mapped read-only; that nobody truncates a model in use is the
        // operator's promise, as for every engine that maps its weights.
        let file = Arc::new(unsafe { Mmap::map(&file) }.map_err(unreadable)?);
        let parsed = SafeTensors::deserialize(&file).map_err(|error| corrupt(explain(&error)))?;
        for (name, view) in parsed.iter() {
            let tensor = StoredTensor {
                start: view.data().as_ptr() as usize - file.as_ptr() as usize,
                bytes: view.data().len(),
                file: file.clone(),
                shape: view.shape().to_vec(),
                dtype: view.dtype(),
            };
            self.tensors.insert(name.to_string(), tensor);
        }
        self.files.push(file);
        Ok(())
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
        let corrupt = |problem| LoadError::Corrupt { path: self.directory.clone(), problem };
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| corrupt(format!("tensor {name} is missing")))?;
        if tensor.shape != shape {
            let found = &tensor.shape;
            return Err(corrupt(format!(
                "tensor {name} has shape {found:?}, config.json implies {shape:?}"
            )));
        }
        let element_bytes = match tensor.dtype {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
            other => {
                return Err(LoadError::Unsupported {
                    path: self.directory.clone(),
                    what: format!("dtype {other:?} (tensor {name})"),
                    supported: "F32, BF16 and F16",
                });
            }
        };
        if !tensor.start.is_multiple_of(element_bytes) {
            return Err(corrupt(format!("tensor {name} is not aligned to its element size")));
        }
        Ok(tensor.clone())
    }
}

impl WeightMatrix {
    /// The matrix, borrowed from its mapped file.
    pub fn matrix(&self) -> Matrix<'_> {
        let data = match self.tensor.dtype {
            Dtype::F32 => WeightData::F32(self.elements::<f32>()),
            Dtype::BF16 => WeightData::Bf16(self.elements::<bf16>()),
            Dtype::F16 => WeightData::F16(self.elements::<f16>()),
            other => unreachable!("dtype {other:?} was refused at load"),
        };
        Matrix { data, outputs: self.outputs, inputs: self.inputs }
    }

    fn elements<E: Element>(&self) -> &[E] {
        let StoredTensor { file, start, bytes, .. } = &self.tensor;
        let data = &file[*start..*start + *bytes];
        // SAFETY: aligned (checked at load; maps are page-aligned), in bounds by the slice, and
        // every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), bytes / size_of::<E>()) }
    }
}

fn shard_names(directory: &Path) -> Result<Vec<String>, LoadError> {
    let index = directory.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec!["model.safetensors".to_string()]);
    }
    let text = std::fs::read_to_string(&index).map_err(|source| LoadError::Unreadable {
        path: index.clone(),
        source,
        advice: ADVICE,
    })?;
    let corrupt = |problem: String| LoadError::Corrupt { path: index.clone(), problem };
    let parsed: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    let map = parsed["weight_map"].as_object();
    let map = map.ok_or_else(|| corrupt("it has no weight_map".to_string()))?;
    let mut names: Vec<String> =
        map.values().filter_map(|name| name.as_str()).map(str::to_string).collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| name.contains(['/', '\\'])) {
        Some(name) => Err(corrupt(format!("weight_map names {name}, outside of the directory"))),
        None => Ok(names),
    }
}

fn explain(error: &safetensors::SafeTensorError) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::MetadataIncompleteBuffer => "its data is shorter than its header says: truncated".into(),
        E::HeaderTooSmall => "it is too short to hold a header: truncated".into(),
        other => format!("its safetensors header is wrong ({other})"),
    }
}
