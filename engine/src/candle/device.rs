//! Which device, and what is said when it fails.

use std::fmt;

use candle_core::{Device, Error, Result};

use crate::LoadError;

/// What candle computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandleDevice {
    /// This machine's CPU: for comparison. Our own kernels are faster.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// As the driver counts them, from 0.
        ordinal: usize,
    },
}

impl fmt::Display for CandleDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("the CPU by candle"),
            Self::Cuda { ordinal } => write!(f, "CUDA device {ordinal}"),
        }
    }
}

impl CandleDevice {
    /// Opens it. Errors: it is not there, or this build has no CUDA.
    pub(super) fn open(self) -> std::result::Result<Device, LoadError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            // A stream of its own is the same one for whichever thread computes.
            Self::Cuda { ordinal } => {
                Device::new_cuda_with_stream(ordinal).map_err(|error| self.failed(&error))
            }
        }
    }

    /// What of the device decides how it rounds: part of the numerics id.
    pub(super) fn kind(self, opened: &Device) -> Result<String> {
        match self {
            Self::Cpu => Ok("cpu".to_string()),
            Self::Cuda { .. } => compute_capability(opened),
        }
    }

    /// The sentence for an error of candle's.
    pub(super) fn failed(self, error: &Error) -> LoadError {
        // Its first line says what; then come lines of a backtrace, where those are on.
        let text = error.to_string();
        self.refused(text.lines().next().unwrap_or_default().to_string())
    }

    /// The sentence for a device that will not do.
    pub(super) fn refused(self, problem: String) -> LoadError {
        LoadError::Device { device: self.to_string(), problem }
    }
}

#[cfg(feature = "cuda")]
fn compute_capability(opened: &Device) -> Result<String> {
    let capability = opened.as_cuda_device()?.cuda_stream().context().compute_capability();
    let (major, minor) = capability.map_err(Error::wrap)?;
    Ok(format!("sm{major}{minor}"))
}

#[cfg(not(feature = "cuda"))]
fn compute_capability(_opened: &Device) -> Result<String> {
    Err(Error::NotCompiledWithCudaSupport)
}
