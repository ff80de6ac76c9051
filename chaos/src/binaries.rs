//! Finds the programs that are run.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The `stator` command: what is named, `STATOR_BINARY`, or the one built beside this program.
/// Errors: a sentence.
pub fn stator(named: Option<PathBuf>) -> Result<PathBuf> {
    let from_environment = || std::env::var_os("STATOR_BINARY").map(PathBuf::from);
    let path = named.or_else(from_environment).map(|path| repository().join(path));
    match path.or_else(beside_this_program) {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => bail!("{} does not exist; build it or set STATOR_BINARY", path.display()),
        None => bail!("no stator command beside this program; build it or set STATOR_BINARY"),
    }
}

/// `target/debug/stator` for `target/debug/chaos` and for tests in `target/debug/deps`.
fn beside_this_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folders = program.ancestors().skip(1).take(2);
    folders.map(|folder| folder.join("stator")).find(|path| path.is_file())
}
