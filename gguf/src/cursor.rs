//! Reads little-endian fields, never beyond the end.

use crate::error::Problem;

/// What is left of a header.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    pub fn bytes(&mut self, count: u64) -> Result<&'a [u8], Problem> {
        let count = usize::try_from(count).ok().filter(|count| *count <= self.rest.len());
        let count =
            count.ok_or_else(|| Problem::corrupt("it ends within its header: truncated"))?;
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let bytes = self.bytes(N as u64)?;
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }

    pub fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string: its length, and its bytes, which are not checked to be UTF-8.
    pub fn string(&mut self) -> Result<&'a [u8], Problem> {
        let len = self.u64()?;
        self.bytes(len)
    }
}
