//! Weights that several workers on one GPU have together.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use engine::{CudaModel, KeeperLaunch, Libraries, WeightFormat};

use crate::cli::{EngineArgs, KeeperArgs, Quantization};
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
        let format = format(quantization);
        let model = Engines::load_files(&model, quantization, cache_dir)?;
        CudaModel::keep(&model, format, ordinal, &Libraries::default(), &socket, GRACE)?;
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
    let quantization = arguments.quantization.and_then(|kind| kind.to_possible_value());
    if let Some(kind) = quantization {
        command.extend(["--quantization".into(), kind.get_name().into()]);
    }
    if let Some(directory) = &arguments.cache_dir {
        command.extend(["--cache-dir".into(), std::path::absolute(directory)?.into()]);
    }
    // From wherever it is started, the keeper works in the root.
    command.push(std::path::absolute(model)?.into());
    Ok(KeeperLaunch {
        program: std::env::current_exe()?,
        arguments: command,
        directory: directory(),
    })
}

/// As what matrices lie on a GPU.
pub fn format(quantization: Option<Quantization>) -> WeightFormat {
    match quantization {
        Some(Quantization::Fp8) => WeightFormat::Fp8,
        // Those of int8 are files.
        Some(Quantization::Int8) | None => WeightFormat::AsStored,
    }
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
