//! The NVIDIA driver's library for looking at GPUs (NVML), loaded where it is there.

use std::path::PathBuf;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::Source;
use crate::gpu::{self, Gpu};

/// GPUs looked at; no host has as many.
pub const GPUS_MAX: u32 = 64;

/// Why there is no GPU. `Display` is a sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum NoGpu {
    /// No library: the usual case of a machine without GPUs.
    #[error(
        "no GPU: there is no NVIDIA driver here (libnvidia-ml.so.1); where there should be, install it, \
         or give the container its GPUs (--gpus all)"
    )]
    NoLibrary,
    /// The library is there, its kernel module is not.
    #[error(
        "no GPU: the NVIDIA driver is installed, but its kernel module is not loaded; modprobe nvidia"
    )]
    NotLoaded,
    /// They are of two versions, as after an update.
    #[error(
        "no GPU: the NVIDIA driver's library and its kernel module are of different versions; restart \
         the machine"
    )]
    Mismatch,
    /// /dev/nvidia* may not be opened.
    #[error(
        "no GPU: this user may not use the NVIDIA driver; give it access to /dev/nvidia*, or the \
         container its GPUs"
    )]
    NoPermission,
    /// The library lacks what every use of it needs.
    #[error("no GPU: the NVIDIA driver is too old for Stator ({0}); update it")]
    TooOld(String),
    /// All is well, and there are none.
    #[error("no GPU: the NVIDIA driver is there, and finds none")]
    NoDevice,
    /// It did not answer within this time, as where a GPU is wedged.
    #[error(
        "no GPU: the NVIDIA driver does not answer within {0:?}; if nvidia-smi hangs too, restart the \
         machine"
    )]
    Silent(Duration),
    /// Anything else.
    #[error("no GPU: the NVIDIA driver fails ({0}); nvidia-smi may say more")]
    Failed(String),
}

impl NoGpu {
    fn new(error: &NvmlError) -> Self {
        match error {
            NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Self::NoLibrary,
            NvmlError::DriverNotLoaded => Self::NotLoaded,
            NvmlError::LibRmVersionMismatch => Self::Mismatch,
            NvmlError::NoPermission => Self::NoPermission,
            NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
                Self::TooOld(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The loaded library.
pub struct Driver {
    pub(crate) nvml: Nvml,
    root: PathBuf,
}

impl Driver {
    /// Loads it. Errors: there is none, or no GPU.
    pub fn open(source: &Source) -> Result<Self, NoGpu> {
        let mut builder = Nvml::builder();
        if let Some(path) = &source.nvml {
            builder.lib_path(path.as_os_str());
        }
        let nvml = builder.init().map_err(|error| NoGpu::new(&error))?;
        if nvml.lib().nvmlShutdown.is_err() {
            // Dropping it would call what is not there.
            std::mem::forget(nvml);
            return Err(NoGpu::TooOld("it has no nvmlShutdown".into()));
        }
        match nvml.device_count() {
            Ok(0) => Err(NoGpu::NoDevice),
            Ok(_) => Ok(Self { nvml, root: source.root.clone() }),
            Err(error) => Err(NoGpu::new(&error)),
        }
    }

    /// The driver's version, where it says.
    pub fn version(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    /// The GPUs that can be used, and sentences about what of them could not be read.
    pub fn gpus(&self) -> (Vec<Gpu>, Vec<String>) {
        let mut notes = Vec::new();
        let mut gpus: Vec<Gpu> = (0..self.count())
            .filter_map(|index| gpu::read(&self.nvml, index, &self.root, &mut notes))
            .collect();
        gpu::find_peers(&self.nvml, &mut gpus, &mut notes);
        (gpus, notes)
    }

    /// How many there are, those that cannot be used too.
    pub(crate) fn count(&self) -> u32 {
        self.nvml.device_count().unwrap_or(0).min(GPUS_MAX)
    }
}

/// What one question to the driver came to.
pub enum Answer<T> {
    /// This.
    Known(T),
    /// Nothing: the hardware has no such thing, or the driver does not tell.
    Unknown,
    /// The GPU cannot be used any more.
    Lost(NvmlError),
}

/// Sorts an answer; where something may be done about a missing one, with a note that says what.
pub fn answer<T>(
    asked: Result<T, NvmlError>,
    gpu: &str,
    what: &str,
    notes: &mut Vec<String>,
) -> Answer<T> {
    let error = match asked {
        Ok(told) => return Answer::Known(told),
        Err(error) => error,
    };
    let why = match error {
        NvmlError::NotSupported | NvmlError::NoData | NvmlError::NotFound => {
            return Answer::Unknown;
        }
        NvmlError::GpuLost | NvmlError::ResetRequired => return Answer::Lost(error),
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "the driver is too old to tell; update it".to_string()
        }
        NvmlError::NoPermission => "this user may not ask for it".to_string(),
        other => other.to_string(),
    };
    notes.push(format!("{gpu}: {what} is not known: {why}"));
    Answer::Unknown
}
