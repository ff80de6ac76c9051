//! Why a GGUF file cannot be used: one sentence that says what, where and what to do.

use std::path::{Path, PathBuf};

/// A file that cannot be used. `Display` is written for the person at the command line.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It is not there or not readable.
    #[error("cannot read {path}: {source}; MODEL must be a readable .gguf file", path = .path.display())]
    Unreadable {
        /// What was looked for.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Its content is wrong.
    #[error("{path} is not usable: {problem}; download the model again or convert it anew",
        path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It is well-formed and nothing here can use it.
    #[error("{path} asks for {what}, which is not supported; supported: {supported}",
        path = .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What could be used instead.
        supported: String,
    },
}

/// What may be wrong with the content of a file, wherever that lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Corrupt(String),
    Unsupported { what: String, supported: String },
}

impl Problem {
    pub(crate) fn corrupt(problem: impl Into<String>) -> Self {
        Self::Corrupt(problem.into())
    }

    pub(crate) fn unsupported(what: impl Into<String>, supported: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), supported: supported.into() }
    }

    /// As an error of the file at `path`.
    pub(crate) fn at(self, path: &Path) -> GgufError {
        let path = path.into();
        match self {
            Self::Corrupt(problem) => GgufError::Corrupt { path, problem },
            Self::Unsupported { what, supported } => {
                GgufError::Unsupported { path, what, supported }
            }
        }
    }
}
