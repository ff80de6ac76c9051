//! Writes GGUF files, version 3.

use crate::TensorType;

const ALIGNMENT: usize = 32;

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Writable {
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

impl From<&str> for Writable {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<usize> for Writable {
    fn from(value: usize) -> Self {
        Self::U32(value as u32)
    }
}

/// A file under construction.
#[derive(Clone, Default)]
pub struct Writer {
    /// Written in this order.
    pub metadata: Vec<(String, Writable)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    kind: TensorType,
    bytes: Vec<u8>,
}

impl Writer {
    /// Adds a value, in the place of another of its key.
    pub fn set(&mut self, key: &str, value: impl Into<Writable>) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.into(), value.into()));
    }

    /// Adds a tensor; `shape` has its outermost dimension first.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: TensorType, bytes: Vec<u8>) {
        let elements: usize = shape.iter().product();
        assert_eq!(bytes.len(), elements / kind.block_elements() * kind.block_bytes(), "{name}");
        self.tensors.push(Tensor { name: name.into(), shape: shape.into(), kind, bytes });
    }

    /// Takes a tensor away.
    pub fn remove_tensor(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// The file.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut file, key);
            put_value(&mut file, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            put_text(&mut file, &tensor.name);
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                file.extend((*size as u64).to_le_bytes());
            }
            file.extend(tensor.kind.number().to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(data);
        file
    }
}

fn put_text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

fn put_value(file: &mut Vec<u8>, value: &Writable) {
    let mut put = |kind: u32, bytes: &[u8]| {
        file.extend(kind.to_le_bytes());
        file.extend(bytes);
    };
    match value {
        Writable::U32(value) => put(4, &value.to_le_bytes()),
        Writable::I32(value) => put(5, &value.to_le_bytes()),
        Writable::F32(value) => put(6, &value.to_le_bytes()),
        Writable::Bool(value) => put(7, &[u8::from(*value)]),
        Writable::U64(value) => put(10, &value.to_le_bytes()),
        Writable::Text(text) => {
            put(8, &[]);
            put_text(file, text);
        }
        Writable::U32s(values) => put_array(file, 4, values, |value| value.to_le_bytes()),
        Writable::I32s(values) => put_array(file, 5, values, |value| value.to_le_bytes()),
        Writable::F32s(values) => put_array(file, 6, values, |value| value.to_le_bytes()),
        Writable::Bools(values) => put_array(file, 7, values, |value| [u8::from(*value)]),
        Writable::Texts(values) => {
            put_array(file, 8, &[] as &[u32], |value| value.to_le_bytes());
            let at = file.len() - 8;
            file[at..].copy_from_slice(&(values.len() as u64).to_le_bytes());
            values.iter().for_each(|text| put_text(file, text));
        }
    }
}

fn put_array<T, const N: usize>(
    file: &mut Vec<u8>,
    kind: u32,
    values: &[T],
    bytes: impl Fn(&T) -> [u8; N],
) {
    file.extend(9u32.to_le_bytes());
    file.extend(kind.to_le_bytes());
    file.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| file.extend(bytes(value)));
}
