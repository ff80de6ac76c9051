//! Where the JSON report goes, opened before the run: a path that cannot be written is known then.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use crate::error::LoadtestError;

/// The `--json` file or standard output.
pub enum Output {
    Stdout,
    File { path: String, file: File },
}

impl Output {
    /// Opens `path` without touching what is in it; `-` is standard output.
    pub fn open(path: &str) -> Result<Self, LoadtestError> {
        if path == "-" {
            return Ok(Self::Stdout);
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| {
            LoadtestError::Arguments(format!("--json {path} cannot be written: {error}"))
        })?;
        Ok(Self::File { path: path.into(), file })
    }

    /// Replaces what was there.
    pub fn write(self, json: &str) -> Result<(), LoadtestError> {
        match self {
            Self::Stdout => Ok(writeln!(io::stdout(), "{json}")?),
            Self::File { path, mut file } => {
                let written = file.set_len(0).and_then(|()| writeln!(file, "{json}"));
                written.map_err(|error| {
                    LoadtestError::Arguments(format!("--json {path} cannot be written: {error}"))
                })
            }
        }
    }
}
