//! Weights that several workers on one GPU have together.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::{CudaModel, KeeperLaunch, KernelPath, Libraries, Model};

use crate::cli::{EngineArgs, KeeperArgs};
use crate::engines::Engines;
use crate::error::CommandError;

/// The name of the command that keeps them.
const COMMAND: &str = "weights-keeper";

/// A worker that starts anew finds them still there.
const GRACE: Duration = Duration::from_secs(30);

/// Keeps weights until nobody uses them.
pub async fn command(arguments: KeeperArgs) -> Result<(), CommandError> {
    let kept = tokio::task::spawn_blocking(move || {
        let KeeperArgs { ordinal, quantization, cache_dir, model, socket } = arguments;
        let model = match quantization {
            None => Model::load(&model, KernelPath::Portable)?,
            Some(_int8) => Engines::load_in_int8(&model, KernelPath::Portable, cache_dir)?,
        };
        CudaModel::keep(&model, ordinal, &Libraries::default(), &socket, GRACE)?;
        Ok(())
    });
    kept.await.map_err(|error| CommandError::Component(error.to_string()))?
}

/// How the keeper of a worker's weights is started. Errors: the system does not say what this program
/// is.
pub fn launch(
    model: &Path,
    ordinal: u32,
    arguments: &EngineArgs,
) -> Result<KeeperLaunch, CommandError> {
    let mut command: Vec<OsString> =
        vec![COMMAND.into(), "--ordinal".into(), ordinal.to_string().into()];
    if arguments.quantization.is_some() {
        command.extend(["--quantization".into(), "int8".into()]);
    }
    if let Some(directory) = &arguments.cache_dir {
        command.extend(["--cache-dir".into(), directory.into()]);
    }
    // From wherever it is started, the keeper works in the root.
    command.push(std::path::absolute(model)?.into());
    Ok(KeeperLaunch {
        program: std::env::current_exe()?,
        arguments: command,
        directory: directory(),
    })
}

/// Where the system has things of running processes of one user.
fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(runtime) if runtime.is_absolute() => runtime.join("stator"),
        _ => {
            let user = rustix::process::geteuid().as_raw();
            std::env::temp_dir().join(format!("stator-{user}"))
        }
    }
}
