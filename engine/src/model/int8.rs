//! Weights in 8 bits: rounded when a model is first loaded so, and kept in a file that every process
//! maps from then on.
//!
//! The file is safetensors: matrices as rows of Q8_0 blocks, and in its metadata whose weights they
//! are and a checksum. What is wrong or of other weights is made anew.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, View};

use super::weights::{StoredTensor, StoredType, WeightMatrix, Weights};
use crate::kernels::{Compute, QuantFormat, quantize_q8_0};
use crate::{KernelPath, LoadError};

const FORMAT: QuantFormat = QuantFormat::Q8_0;

/// Of the metadata, and in the name of what was rounded. It changes with how numbers are rounded.
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

/// The id of weights that were rounded.
pub fn id(weights_id: &str) -> String {
    format!("{weights_id}-int8.{}", VERSION.1)
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
    let weights_id = &id(weights_id);
    let path = directory.join(format!("stator-{weights_id}.safetensors"));
    let matrices = weights.wide_matrices(FORMAT.block_elements());
    let file = match open(&path, weights_id) {
        Ok(file) => file,
        Err(_) => {
            make(&path, weights_id, &matrices, cache.progress)
                .map_err(|source| LoadError::Unwritable { path: path.clone(), source })?;
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

/// Writes the file in a place of its own, and brings it here when it is whole. Processes that begin
/// together wait for one of them: they lock the directory.
fn make(
    path: &Path,
    weights_id: &str,
    matrices: &[(String, WeightMatrix)],
    progress: &(dyn Fn(u64, u64) + Sync),
) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    let lock = File::open(directory)?;
    lock.lock()?;
    if open(path, weights_id).is_ok() {
        // Another process made it meanwhile.
        return Ok(());
    }
    let place = path.with_extension("partial");
    remove(&place)?;
    std::fs::create_dir(&place)?;
    let partial = place.join("weights");
    let made = write(&partial, weights_id, matrices, progress);
    let made = made.and_then(|()| std::fs::rename(&partial, path));
    remove(&place)?;
    made
}

/// What a process that was killed left behind goes too.
fn remove(place: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write(
    path: &Path,
    weights_id: &str,
    matrices: &[(String, WeightMatrix)],
    progress: &(dyn Fn(u64, u64) + Sync),
) -> io::Result<()> {
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
    safetensors::serialize_to_file(tensors, Some(HashMap::from(metadata)), path)
        .map_err(io::Error::other)?;
    // Whoever may read the directory may use it.
    std::fs::set_permissions(path, Permissions::from_mode(0o644))?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (place, checksum) = checksum_of(&file)?;
    file.write_all_at(checksum.as_bytes(), place)?;
    file.sync_all()
}

/// Where the checksum belongs, and what it is.
fn checksum_of(file: &File) -> io::Result<(u64, String)> {
    // SAFETY: only this process, which holds the lock, has the file, and changes it after this map.
    let map = unsafe { Mmap::map(file) }?;
    let (header, _) = SafeTensors::read_metadata(&map).map_err(io::Error::other)?;
    let (head, data) = map.split_at(8 + header);
    let place = head.windows(NO_CHECKSUM.len()).position(|part| part == NO_CHECKSUM.as_bytes());
    let place = place.ok_or_else(|| io::Error::other("no place for the checksum"))?;
    Ok((place as u64, checksum(data)))
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
