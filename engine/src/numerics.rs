//! Whether a token's arithmetic is its own.

/// Whether the arithmetic of a token may depend on what is computed beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    /// It does not: tokens are the same in any company, chunks and cache hits.
    Fixed,
    /// It may, which is faster: nothing is computed that nobody needs.
    Fast,
}
