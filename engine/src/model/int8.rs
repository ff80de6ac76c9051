//! Weights in 8 bits: rounded when a model is first loaded so, and kept in a file that every process
//! maps from then on.
//!
//! The file is safetensors: matrices as rows of Q8_0 blocks, and in its metadata whose weights they
//! are and a checksum. What is wrong or of other weights is made anew.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, View};

use super::weights::{StoredTensor, StoredType, WeightMatrix, Weights};
use crate::kernels::{Compute, QuantFormat, quantize_q8_0};
use crate::{KernelPath, LoadError};

const FORMAT: QuantFormat = QuantFormat::Q8_0;

/// Of the metadata. The version changes with what is in the file.
const VERSION: (&str, &str) = ("stator_int8", "1");
const SOURCE: &str = "source";
const CHECKSUM: &str = "checksum";

/// What the checksum is until there is one: as many characters.
const NO_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Where weights in 8 bits are kept, and who is told while they are made.
pub struct Int8Cache<'a> {
    /// Where the file lies; beside the model if absent.
    pub directory: Option<PathBuf>,
    /// Called with the bytes that are written, and with those that will be.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Puts 8-bit matrices in place of wider ones. `weights_id` names these. Errors: the file cannot be
/// written.
pub fn round(
    weights: &mut Weights,
    weights_id: &str,
    model: &Path,
    cache: &Int8Cache<'_>,
) -> Result<(), LoadError> {
    let beside = if model.is_dir() { model } else { model.parent().unwrap_or(model) };
    let directory = cache.directory.as_deref().unwrap_or(beside);
    let path = directory.join(format!("stator-int8-{weights_id}.safetensors"));
    let matrices = weights.wide_matrices(FORMAT.block_elements());
    let file = match open(&path, weights_id) {
        Ok(file) => file,
        Err(_) => {
            make(&path, weights_id, &matrices, cache.progress).map_err(|source| {
                let _ = std::fs::remove_file(partial(&path));
                LoadError::Unwritable { path: path.clone(), source }
            })?;
            let corrupt = |problem| LoadError::Corrupt { path: path.clone(), problem };
            open(&path, weights_id).map_err(corrupt)?
        }
    };
    let file = Arc::new(file);
    let corrupt = |problem: String| LoadError::Corrupt { path: path.clone(), problem };
    let parsed = SafeTensors::deserialize(&file).map_err(|error| corrupt(error.to_string()))?;
    for (name, matrix) in matrices {
        let view = parsed.tensor(&name).map_err(|error| corrupt(error.to_string()))?;
        if view.shape() != Rounded::shape_of(&matrix) {
            return Err(corrupt(format!("tensor {name} has another shape")));
        }
        let start = view.data().as_ptr() as usize - file.as_ptr() as usize;
        let bytes = start..start + view.data().len();
        let (shape, kind) = (matrix.shape().to_vec(), StoredType::Quantized(FORMAT));
        weights.insert(name, StoredTensor { file: file.clone(), bytes, shape, kind });
    }
    Ok(())
}

/// Maps the file. Errors: it is not there, or not what was written.
fn open(path: &Path, weights_id: &str) -> Result<Mmap, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    // SAFETY: mapped read-only; nobody changes such a file, it is only replaced.
    let file = unsafe { Mmap::map(&file) }.map_err(|error| error.to_string())?;
    let (header, metadata) =
        SafeTensors::read_metadata(&file).map_err(|error| error.to_string())?;
    let says = |key: &str| metadata.metadata().as_ref()?.get(key).map(String::as_str);
    if says(VERSION.0) != Some(VERSION.1) || says(SOURCE) != Some(weights_id) {
        return Err("it is of other weights".into());
    }
    let checksum = checksum(&file[8 + header..]);
    if says(CHECKSUM) != Some(&checksum) {
        return Err("its checksum is wrong".into());
    }
    Ok(file)
}

fn checksum(data: &[u8]) -> String {
    blake3::hash(data).to_hex().to_string()
}

/// Writes the file under another name, and renames it when it is whole. Processes that begin together
/// wait for one of them.
fn make(
    path: &Path,
    weights_id: &str,
    matrices: &[(String, WeightMatrix)],
    progress: &(dyn Fn(u64, u64) + Sync),
) -> io::Result<()> {
    let partial = partial(path);
    let options = OpenOptions::new().create(true).truncate(false).write(true).clone();
    let lock = options.open(&partial)?;
    lock.lock()?;
    if open(path, weights_id).is_ok() {
        // Another process made it meanwhile. The name is of no use to it any more.
        let _ = std::fs::remove_file(&partial);
        return Ok(());
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let compute = Compute::new(threads, KernelPath::Portable)?;
    let total = matrices.iter().map(|(_, matrix)| Rounded::bytes_of(matrix) as u64).sum();
    let written = AtomicU64::new(0);
    let tell = |bytes: usize| {
        let before = written.fetch_add(bytes as u64, Ordering::Relaxed);
        progress(before + bytes as u64, total);
    };
    let tensors = matrices.iter().map(|(name, matrix)| {
        let shape = Rounded::shape_of(matrix);
        (name.as_str(), Rounded { matrix, compute: &compute, shape, tell: &tell })
    });
    let metadata = [VERSION, (SOURCE, weights_id), (CHECKSUM, NO_CHECKSUM)];
    let metadata = metadata.map(|(key, value)| (key.to_string(), value.to_string()));
    safetensors::serialize_to_file(tensors, Some(HashMap::from(metadata)), &partial)
        .map_err(io::Error::other)?;
    write_checksum(&partial)?;
    std::fs::rename(&partial, path)
}

/// The file's name until it is whole.
fn partial(path: &Path) -> PathBuf {
    path.with_extension("partial")
}

/// Replaces the placeholder.
fn write_checksum(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: only this process, which holds the lock, has the file.
    let map = unsafe { Mmap::map(&file) }?;
    let (header, _): (usize, Metadata) =
        SafeTensors::read_metadata(&map).map_err(io::Error::other)?;
    let (head, data) = map.split_at(8 + header);
    let place = head.windows(NO_CHECKSUM.len()).position(|part| part == NO_CHECKSUM.as_bytes());
    let place = place.ok_or_else(|| io::Error::other("no place for the checksum"))?;
    file.write_all_at(checksum(data).as_bytes(), place as u64)?;
    file.sync_all()
}

/// A matrix that is rounded when it is written.
struct Rounded<'a> {
    matrix: &'a WeightMatrix,
    compute: &'a Compute,
    shape: [usize; 2],
    /// Told how many bytes are ready.
    tell: &'a (dyn Fn(usize) + Sync),
}

impl Rounded<'_> {
    /// Rows, and the bytes of each.
    fn shape_of(matrix: &WeightMatrix) -> [usize; 2] {
        let [outputs, inputs] = matrix.shape();
        [outputs, FORMAT.row_bytes(inputs)]
    }

    fn bytes_of(matrix: &WeightMatrix) -> usize {
        Self::shape_of(matrix).iter().product()
    }
}

impl View for Rounded<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::U8
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        /// Rows that one thread rounds at once.
        const ROWS: usize = 64;
        let [outputs, inputs] = self.matrix.shape();
        let row_bytes = self.shape[1];
        let mut bytes = vec![0; self.data_len()];
        let (rows, matrix): (Vec<usize>, _) = ((0..outputs).collect(), self.matrix.matrix());
        let round = |rows: &[usize], bytes: &mut [u8]| {
            let mut numbers = vec![0.0; inputs];
            for (row, blocks) in rows.iter().zip(bytes.chunks_exact_mut(row_bytes)) {
                matrix.copy_row(*row, &mut numbers);
                quantize_q8_0(&numbers, blocks);
            }
            (self.tell)(bytes.len());
        };
        self.compute.split_chunks((&rows, ROWS), (&mut bytes, ROWS * row_bytes), round);
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product()
    }
}
