//! The header of a file: what it is, its metadata, its tensors.

use std::collections::HashSet;
use std::path::Path;

use crate::cursor::Cursor;
use crate::error::{GgufError, Problem};
use crate::metadata::{Metadata, Value, as_bool, as_float, as_text, as_unsigned};
use crate::tensor::{TensorInfo, TensorType, tensor_bytes};

/// Keys of one file at most; real ones have some dozens.
const KEYS_MAX: u64 = 1 << 16;

/// Tensors of one file at most; real ones have some thousands.
const TENSORS_MAX: u64 = 1 << 20;

const DIMENSIONS_MAX: u32 = 4;

/// Where a file does not say.
const ALIGNMENT: u64 = 32;

/// A parsed file, borrowed from its bytes.
#[derive(Debug)]
pub struct Gguf<'a> {
    path: &'a Path,
    metadata: Metadata<'a>,
    /// In the file's order.
    pub tensors: Vec<TensorInfo<'a>>,
}

impl<'a> Gguf<'a> {
    /// Parses and checks the header of a file. `bytes` are the whole file; `path` is for errors.
    pub fn parse(bytes: &'a [u8], path: &'a Path) -> Result<Self, GgufError> {
        let (metadata, tensors) = parse(bytes).map_err(|problem| problem.at(path))?;
        Ok(Self { path, metadata, tensors })
    }

    /// All metadata, as it is.
    pub fn metadata(&self) -> &Metadata<'a> {
        &self.metadata
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// A key that must be there. `value` is what one of the methods below found.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, GgufError> {
        value.ok_or_else(|| self.corrupt(format!("metadata {key} is missing")))
    }

    /// An integer from 0. Errors: the value is something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.check(self.metadata.unsigned(key))
    }

    /// A number. Errors: the value is something else.
    pub fn float(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.check(self.metadata.float(key))
    }

    /// True or false. Errors: the value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.check(self.metadata.bool(key))
    }

    /// A text. Errors: the value is something else, or not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.check(self.metadata.text(key))
    }

    /// Integers from 0. Errors: the value is something else.
    pub fn unsigneds(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        self.check(self.metadata.array(key, "an array of integers from 0", as_unsigned))
    }

    /// Numbers. Errors: the value is something else.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.check(self.metadata.array(key, "an array of numbers", as_float))
    }

    /// True or false, many times. Errors: the value is something else.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, GgufError> {
        self.check(self.metadata.array(key, "an array of true and false", as_bool))
    }

    /// Texts. Errors: the value is something else, or one is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, GgufError> {
        self.check(self.metadata.array(key, "an array of texts", as_text))
    }

    /// The error of a file whose content is wrong.
    pub fn corrupt(&self, problem: impl Into<String>) -> GgufError {
        Problem::corrupt(problem).at(self.path)
    }

    /// The error of a file that asks for what is not there.
    pub fn unsupported(&self, what: impl Into<String>, supported: impl Into<String>) -> GgufError {
        Problem::unsupported(what, supported).at(self.path)
    }

    fn check<T>(&self, result: Result<T, Problem>) -> Result<T, GgufError> {
        result.map_err(|problem| problem.at(self.path))
    }
}

fn parse<'a>(bytes: &'a [u8]) -> Result<(Metadata<'a>, Vec<TensorInfo<'a>>), Problem> {
    let mut cursor = Cursor::new(bytes);
    check_beginning(&mut cursor)?;
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    for (what, count, max) in [("tensors", tensors, TENSORS_MAX), ("keys", keys, KEYS_MAX)] {
        if count > max {
            return Err(Problem::corrupt(format!("it claims {count} {what}, more than {max}")));
        }
    }
    let metadata = read_metadata(&mut cursor, keys)?;
    check_whole(&metadata)?;
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        let problem = format!("general.alignment is {alignment}, expected a power of two");
        return Err(Problem::Corrupt(problem));
    }
    let raw = (0..tensors).map(|_| RawTensor::read(&mut cursor));
    let raw = raw.collect::<Result<Vec<_>, _>>()?;
    let data_at = (bytes.len() - cursor.left()).next_multiple_of(alignment as usize);
    let mut names = HashSet::new();
    let place = |tensor: RawTensor<'a>| {
        if !names.insert(tensor.name) {
            return Err(Problem::corrupt(format!("it has two tensors {}", tensor.name)));
        }
        tensor.place(alignment, data_at, bytes.len())
    };
    Ok((metadata, raw.into_iter().map(place).collect::<Result<_, _>>()?))
}

fn check_beginning(cursor: &mut Cursor<'_>) -> Result<(), Problem> {
    const SUPPORTED: &str = "GGUF versions 2 and 3, little endian";
    if cursor.array::<4>().map_or(true, |magic| &magic != b"GGUF") {
        return Err(Problem::corrupt("it is not a GGUF file: it does not begin with \"GGUF\""));
    }
    match cursor.u32()? {
        2 | 3 => Ok(()),
        // The version of a file for big-endian machines, read in our order.
        version if matches!(version.swap_bytes(), 1..=0xffff) => {
            Err(Problem::unsupported("big-endian numbers", SUPPORTED))
        }
        version => Err(Problem::unsupported(format!("GGUF version {version}"), SUPPORTED)),
    }
}

fn read_metadata<'a>(cursor: &mut Cursor<'a>, keys: u64) -> Result<Metadata<'a>, Problem> {
    let mut metadata = Metadata::default();
    for _ in 0..keys {
        let key = text(cursor.string()?, "key of its metadata")?;
        let value = Value::read(cursor)?;
        if metadata.values.insert(key, value).is_some() {
            return Err(Problem::corrupt(format!("its metadata has the key {key} twice")));
        }
    }
    Ok(metadata)
}

fn check_whole(metadata: &Metadata<'_>) -> Result<(), Problem> {
    match metadata.unsigned("split.count")? {
        None | Some(0 | 1) => Ok(()),
        Some(parts) => Err(Problem::unsupported(
            format!("its other parts (it is split into {parts} files)"),
            "one whole file, as `llama-gguf-split --merge` makes of the parts",
        )),
    }
}

fn text<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Problem> {
    std::str::from_utf8(bytes).map_err(|_| Problem::corrupt(format!("a {what} is not UTF-8")))
}

/// A tensor as the header has it: checked by itself, not yet against the file.
struct RawTensor<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: TensorType,
    /// From the beginning of all tensors' data.
    offset: u64,
}

impl<'a> RawTensor<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Problem> {
        let name = text(cursor.string()?, "tensor's name")?;
        let dimensions = cursor.u32()?;
        if dimensions > DIMENSIONS_MAX {
            let problem = format!("tensor {name} has {dimensions} dimensions");
            return Err(Problem::Corrupt(problem));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = cursor.u64()?;
            let usable = usize::try_from(size).ok().filter(|size| *size > 0);
            let problem = || format!("tensor {name} has a dimension of {size}");
            shape.insert(0, usable.ok_or_else(|| Problem::Corrupt(problem()))?);
        }
        let number = cursor.u32()?;
        let kind = TensorType::of(number).ok_or_else(|| {
            let what = format!("tensors of type number {number} (tensor {name})");
            Problem::unsupported(what, "the types that ggml defines")
        })?;
        Ok(Self { name, shape, kind, offset: cursor.u64()? })
    }

    fn place(self, alignment: u64, data_at: usize, file: usize) -> Result<TensorInfo<'a>, Problem> {
        let Self { name, shape, kind, offset } = self;
        if !offset.is_multiple_of(alignment) {
            return Err(Problem::corrupt(format!("tensor {name} is not aligned to {alignment}")));
        }
        let bytes = tensor_bytes(name, &shape, kind)?;
        let start = usize::try_from(offset).ok().and_then(|offset| data_at.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(bytes));
        match start.zip(end).filter(|(_, end)| *end <= file) {
            Some((start, end)) => Ok(TensorInfo { name, shape, kind, bytes: start..end }),
            None => Err(Problem::corrupt(format!("it ends before tensor {name} does: truncated"))),
        }
    }
}
