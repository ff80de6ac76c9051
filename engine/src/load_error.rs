//! Why a model cannot be served: one sentence that says what, where and what to do.

use std::path::PathBuf;

use gguf::GgufError;

/// A model that cannot be loaded. `Display` is written for the person at the command line.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory or one of its files is not there or not readable.
    #[error("cannot read {path}: {source}; {advice}", path = .path.display())]
    Unreadable {
        /// What was looked for.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// A file is there and its content is wrong.
    #[error("{path} is not usable: {problem}; download the model again or convert it anew",
        path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A model that is well-formed and that this engine cannot run.
    #[error("{path} asks for {what}, which is not supported; supported: {supported}",
        path = .path.display())]
    Unsupported {
        /// The file that says so.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What could be used instead.
        supported: &'static str,
    },
    /// Weights in 8 bits cannot be kept.
    #[error("cannot write {path}: {source}; name a directory with room for it (--cache-dir)",
        path = .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A model of sizes that a device's kernels do not compute: a sentence.
    #[error("{0}")]
    Unsuited(String),
    /// A device that cannot be used.
    #[error("{device} cannot compute: {problem}; mend that, or serve with --device cpu")]
    Device {
        /// Which.
        device: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A GGUF file that cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}
