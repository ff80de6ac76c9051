//! How the pieces of a decoder layer between its matrix products are launched. Fields that are
//! addresses say what lies there; a null address is 0.

use crate::attention::KvPlanes;
use crate::launch::{Argument, Launch, LaunchError, along_yz, count, multiple_of};
use crate::shape::KernelShape;

const ROW_THREADS: usize = 256;
const HEAD_WARPS: usize = 4;
const WARP: usize = 32;

/// Embeddings of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    /// How many tokens.
    pub rows: usize,
    /// Elements of an embedding.
    pub hidden: usize,
    /// Rows of the table.
    pub vocabulary: usize,
    /// f32 `[rows, hidden]`.
    pub out: u64,
    /// Weights `[vocabulary, hidden]`.
    pub table: u64,
    /// u32 `[rows]`; a token beyond the vocabulary has zeros.
    pub tokens: u64,
}

/// RMSNorm after an addition to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct AddAndNormalise {
    /// Rows.
    pub rows: usize,
    /// Elements of a row, a multiple of 4.
    pub hidden: usize,
    /// f32 `[rows, hidden]`: the residual stream, added to in place.
    pub x: u64,
    /// Activations `[rows, hidden]`, or null.
    pub delta: u64,
    /// Weights `[hidden]`.
    pub weight: u64,
    /// Activations `[rows, hidden]`.
    pub normalised: u64,
    /// What is added to the mean square.
    pub epsilon: f32,
}

/// Heads before attention: bias, norm, rotation, and the way of keys and values into their blocks.
#[derive(Clone, Copy, Debug)]
pub struct PrepareHeads {
    /// Rows, at most 65,535.
    pub rows: usize,
    /// Activations `[rows, heads + 2 kv_heads, head_dim]`: queries, keys and values.
    pub projected: u64,
    /// Weights `[heads + 2 kv_heads, head_dim]`, or null.
    pub bias: u64,
    /// Weights `[head_dim]`, or null.
    pub query_norm: u64,
    /// Weights `[head_dim]`, or null.
    pub key_norm: u64,
    /// f32 `[rows, head_dim]`: cosines, then sines, of each row's position.
    pub angles: u64,
    /// u32 `[rows]`: block * block_size + slot, or `NOBODY`.
    pub slots: u64,
    /// f32 `[rows, heads, head_dim]`.
    pub queries: u64,
    /// Where keys and values go. Rows have distinct slots.
    pub planes: KvPlanes,
    /// What the norms add to the mean square.
    pub epsilon: f32,
}

/// SwiGLU's middle.
#[derive(Clone, Copy, Debug)]
pub struct SiluMultiply {
    /// Rows, at most 65,535.
    pub rows: usize,
    /// Elements of gate and of up, a multiple of 8.
    pub inner: usize,
    /// Activations `[rows, inner]`.
    pub out: u64,
    /// Activations `[rows, 2, inner]`: gate, then up.
    pub both: u64,
}

/// Some rows of a table.
#[derive(Clone, Copy, Debug)]
pub struct TakeRows {
    /// How many.
    pub rows: usize,
    /// Bytes of a row, a multiple of 4.
    pub row_bytes: usize,
    /// `[rows]` of such rows.
    pub out: u64,
    /// The table, of such rows.
    pub table: u64,
    /// u32 `[rows]`: which, or `NOBODY`.
    pub numbers: u64,
}

/// A bias on a product.
#[derive(Clone, Copy, Debug)]
pub struct AddBias {
    /// Rows, at most 65,535.
    pub rows: usize,
    /// Elements of a row.
    pub outputs: usize,
    /// Activations `[rows, outputs]`, added to in place.
    pub y: u64,
    /// Weights `[outputs]`.
    pub bias: u64,
}

impl TakeRows {
    /// Errors: rows are no multiples of 4 bytes; more than a kernel counts.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        const TAKE: &str = "take_rows";
        multiple_of(TAKE, "bytes of a row", self.row_bytes, 4)?;
        Ok(rows(TAKE, self.rows)?.with([
            Argument::Pointer(self.out),
            Argument::Pointer(self.table),
            Argument::Pointer(self.numbers),
            Argument::U32(count(TAKE, "words of a row", self.row_bytes / 4)?),
        ]))
    }
}

impl AddBias {
    /// Errors: more rows than a grid has room for; more than a kernel counts.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        const ADD: &str = "add_bias";
        let pieces = self.outputs.div_ceil(ROW_THREADS);
        let grid = [count(ADD, "outputs", pieces)?, along_yz(ADD, "rows", self.rows)?, 1];
        Ok(Launch { grid, ..rows(ADD, 1)? }.with([
            Argument::Pointer(self.y),
            Argument::Pointer(self.bias),
            Argument::U32(count(ADD, "outputs", self.outputs)?),
        ]))
    }
}

impl Embed {
    /// Errors: more than a kernel counts.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        const EMBED: &str = "embed";
        Ok(rows(EMBED, self.rows)?.with([
            Argument::Pointer(self.out),
            Argument::Pointer(self.table),
            Argument::Pointer(self.tokens),
            Argument::U32(count(EMBED, "elements", self.hidden)?),
            Argument::U32(count(EMBED, "tokens of the vocabulary", self.vocabulary)?),
        ]))
    }
}

impl AddAndNormalise {
    /// Errors: `hidden` is no multiple of 4; more than a kernel counts.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        const NORMALISE: &str = "add_and_normalise";
        multiple_of(NORMALISE, "elements of a row", self.hidden, 4)?;
        Ok(rows(NORMALISE, self.rows)?.with([
            Argument::Pointer(self.x),
            Argument::Pointer(self.delta),
            Argument::Pointer(self.weight),
            Argument::Pointer(self.normalised),
            Argument::U32(count(NORMALISE, "elements of a row", self.hidden)?),
            Argument::F32(self.epsilon),
        ]))
    }
}

impl PrepareHeads {
    /// Errors: more rows than a grid has room for.
    pub fn launch(&self, shape: &KernelShape) -> Result<Launch, LaunchError> {
        const PREPARE: &str = "prepare_heads";
        let heads = shape.heads + 2 * shape.kv_heads;
        let launch = Launch {
            kernel: PREPARE.into(),
            grid: [heads.div_ceil(HEAD_WARPS) as u32, along_yz(PREPARE, "rows", self.rows)?, 1],
            threads: (HEAD_WARPS * WARP) as u32,
            shared_bytes: 0,
            arguments: Vec::new(),
        };
        Ok(launch.with([
            Argument::Pointer(self.queries),
            Argument::Pointer(self.planes.pool),
            Argument::Pointer(self.projected),
            Argument::Pointer(self.bias),
            Argument::Pointer(self.query_norm),
            Argument::Pointer(self.key_norm),
            Argument::Pointer(self.angles),
            Argument::Pointer(self.slots),
            Argument::U32(shape.heads as u32),
            Argument::U32(shape.kv_heads as u32),
            Argument::U64(self.planes.block_bytes as u64),
            Argument::U64(self.planes.keys_at as u64),
            Argument::U64(self.planes.values_at as u64),
            Argument::F32(self.epsilon),
        ]))
    }
}

impl SiluMultiply {
    /// Errors: `inner` is no multiple of 8; more than a kernel counts.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        const MULTIPLY: &str = "silu_multiply";
        multiple_of(MULTIPLY, "elements", self.inner, 8)?;
        let pieces = (self.inner / 8).div_ceil(ROW_THREADS);
        let launch = Launch {
            grid: [pieces as u32, along_yz(MULTIPLY, "rows", self.rows)?, 1],
            ..rows(MULTIPLY, 1)?
        };
        Ok(launch.with([
            Argument::Pointer(self.out),
            Argument::Pointer(self.both),
            Argument::U32(count(MULTIPLY, "elements", self.inner)?),
        ]))
    }
}

/// A block of threads for each row.
fn rows(kernel: &'static str, rows: usize) -> Result<Launch, LaunchError> {
    Ok(Launch {
        kernel: kernel.into(),
        grid: [count(kernel, "rows", rows)?, 1, 1],
        threads: ROW_THREADS as u32,
        shared_bytes: 0,
        arguments: Vec::new(),
    })
}

impl Launch {
    fn with<const N: usize>(self, arguments: [Argument; N]) -> Self {
        Self { arguments: arguments.to_vec(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::llama_8b;

    #[test]
    fn grids_cover_rows_heads_and_elements() {
        let planes = KvPlanes { pool: 0, block_bytes: 0, keys_at: 0, values_at: 0 };
        let prepare = PrepareHeads {
            rows: 7,
            projected: 0,
            bias: 0,
            query_norm: 0,
            key_norm: 0,
            angles: 0,
            slots: 0,
            queries: 0,
            planes,
            epsilon: 1e-6,
        };
        // A warp for each of 32 + 8 + 8 heads.
        assert_eq!(prepare.launch(&llama_8b()).unwrap().grid, [12, 7, 1]);
        let silu = SiluMultiply { rows: 5, inner: 14_336, out: 0, both: 0 };
        assert_eq!(silu.launch().unwrap().grid, [7, 5, 1]);
        assert!(SiluMultiply { inner: 12, ..silu }.launch().is_err());
        let normalise = AddAndNormalise {
            rows: 70_000,
            hidden: 4096,
            x: 0,
            delta: 0,
            weight: 0,
            normalised: 0,
            epsilon: 1e-6,
        };
        assert_eq!(normalise.launch().unwrap().grid, [70_000, 1, 1]);
        assert!(AddAndNormalise { hidden: 4098, ..normalise }.launch().is_err());
    }
}
