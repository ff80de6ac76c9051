//! Maps files.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::GgufError;

/// Maps a file to be parsed, read-only: processes share its pages. Errors: it cannot be read.
pub fn map(path: &Path) -> Result<Mmap, GgufError> {
    let unreadable = |source| GgufError::Unreadable { path: path.into(), source };
    let file = File::open(path).map_err(unreadable)?;
    // SAFETY: the file is mapped read-only; that nobody truncates a model in use is the operator's
    // promise, as for every engine that maps its weights.
    unsafe { Mmap::map(&file) }.map_err(unreadable)
}
