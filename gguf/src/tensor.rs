//! Tensors: where they lie and how their numbers are stored.

use std::fmt;
use std::ops::Range;

use crate::error::Problem;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape, outermost dimension first (files list the innermost first).
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub kind: TensorType,
    /// Where its bytes lie in the file.
    pub bytes: Range<usize>,
}

/// How the numbers of a tensor are stored, by its number in files. Rows are whole blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TensorType(u32);

/// Number, name, elements of a block, bytes of a block, as ggml defines them.
const TYPES: [(u32, &str, usize, usize); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl TensorType {
    /// 4-byte floats.
    pub const F32: Self = Self(0);
    /// IEEE half precision.
    pub const F16: Self = Self(1);
    /// The upper half of an f32.
    pub const BF16: Self = Self(30);
    /// 4 bits, blocks of 32.
    pub const Q4_0: Self = Self(2);
    /// 5 bits, blocks of 32.
    pub const Q5_0: Self = Self(6);
    /// 8 bits, blocks of 32.
    pub const Q8_0: Self = Self(8);
    /// 4 bits, blocks of 256.
    pub const Q4_K: Self = Self(12);
    /// 6 bits, blocks of 256.
    pub const Q6_K: Self = Self(14);

    /// The type of a name such as `Q4_0`.
    pub fn named(name: &str) -> Option<Self> {
        let row = TYPES.iter().find(|(_, known, ..)| *known == name);
        row.map(|(number, ..)| Self(*number))
    }

    /// The type of this number.
    pub(crate) fn of(number: u32) -> Option<Self> {
        TYPES.iter().any(|(known, ..)| *known == number).then_some(Self(number))
    }

    /// Its number in files.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Elements of a block: 1 for plain numbers.
    pub fn block_elements(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    fn row(self) -> &'static (u32, &'static str, usize, usize) {
        let row = TYPES.iter().find(|(number, ..)| *number == self.0);
        row.expect("a type is made of a number in the table")
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes of a tensor. Errors: its rows are not whole blocks, or a product overflows.
pub(crate) fn tensor_bytes(
    name: &str,
    shape: &[usize],
    kind: TensorType,
) -> Result<usize, Problem> {
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(kind.block_elements()) {
        return Err(Problem::corrupt(format!(
            "tensor {name} has rows of {row} elements, which are no whole blocks of {kind}"
        )));
    }
    let elements = shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
    let bytes =
        elements.and_then(|count| (count / kind.block_elements()).checked_mul(kind.block_bytes()));
    bytes.ok_or_else(|| Problem::corrupt(format!("tensor {name} is too large for any file")))
}
