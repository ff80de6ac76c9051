//! The safetensors files of a model directory.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::weights::{StoredTensor, StoredType, Weights};
use crate::LoadError;

const ADVICE: &str = "MODEL must hold its weights as model.safetensors or as \
    model.safetensors.index.json with its shards";

/// Maps and checks all files of a directory.
pub fn open(directory: &Path, weights: &mut Weights) -> Result<(), LoadError> {
    for name in shard_names(directory)? {
        add_file(&directory.join(name), weights)?;
    }
    Ok(())
}

fn add_file(path: &Path, weights: &mut Weights) -> Result<(), LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.into(), source, advice: ADVICE };
    let corrupt = |problem: String| LoadError::Corrupt { path: path.into(), problem };
    let file = File::open(path).map_err(unreadable)?;
    // SAFETY: the file is mapped read-only; that nobody truncates a model in use is the
    // operator's promise, as for every engine that maps its weights.
    let file = Arc::new(unsafe { Mmap::map(&file) }.map_err(unreadable)?);
    let parsed = SafeTensors::deserialize(&file).map_err(|error| corrupt(explain(&error)))?;
    for (name, view) in parsed.iter() {
        let start = view.data().as_ptr() as usize - file.as_ptr() as usize;
        let kind = match view.dtype() {
            Dtype::F32 => StoredType::F32,
            Dtype::BF16 => StoredType::Bf16,
            Dtype::F16 => StoredType::F16,
            other => StoredType::Other(format!("{other:?}")),
        };
        let bytes = start..start + view.data().len();
        let shape = view.shape().to_vec();
        weights.insert(name.to_string(), StoredTensor { file: file.clone(), bytes, shape, kind });
    }
    weights.files.push(file);
    Ok(())
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
