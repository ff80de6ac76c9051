//! What can go wrong with GPUs.

use std::fmt;

use crate::DriverCode;

/// Bytes, for people.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        let mib = self.0 as f64 / MIB;
        if mib < 1024.0 {
            write!(out, "{mib:.0} MiB")
        } else {
            write!(out, "{:.1} GiB", mib / 1024.0)
        }
    }
}

/// Why a GPU did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver's library cannot be loaded.
    #[error(
        "there is no NVIDIA driver here ({0}); install it, or in a container start that with its GPUs"
    )]
    NoDriver(String),
    /// A function is missing.
    #[error(
        "the NVIDIA driver is too old: it lacks {symbol}; CUDA 11.4 (driver 470) or newer is needed"
    )]
    OldDriver {
        /// Which.
        symbol: &'static str,
    },
    /// The driver is there and no GPU with this number, or none at all.
    #[error(
        "there is no GPU {ordinal}: the driver shows {devices} (CUDA_VISIBLE_DEVICES limits them)"
    )]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many there are.
        devices: usize,
    },
    /// A pool does not fit.
    #[error(
        "a KV pool of {} does not fit on GPU {ordinal}, where {} are free; use fewer --kv-blocks",
        Size(*bytes),
        Size(*free_bytes)
    )]
    PoolTooLarge {
        /// Where.
        ordinal: u32,
        /// What was asked for.
        bytes: usize,
        /// What was there.
        free_bytes: usize,
    },
    /// Memory for anything else is used up, on a GPU or pinned on the host.
    #[error("{call} found no memory left")]
    OutOfMemory {
        /// The driver's function.
        call: &'static str,
    },
    /// Two GPUs cannot reach each other's memory.
    #[error("the GPUs cannot reach each other's memory: {call} says {code}")]
    PeerRefused {
        /// The driver's function.
        call: &'static str,
        /// What it answered.
        code: DriverCode,
    },
    /// Memory or an event cannot be shared between these processes: another container, user, driver
    /// setting, or a handle that is none any more.
    #[error("GPU memory cannot be shared between these processes: {call} says {code}")]
    IpcRefused {
        /// The driver's function.
        call: &'static str,
        /// What it answered.
        code: DriverCode,
    },
    /// The GPU, or this process's use of it, is lost until the process starts anew.
    #[error("the GPU is lost to this process, which has to be restarted: {call} says {code}")]
    DeviceLost {
        /// The driver's function.
        call: &'static str,
        /// What it answered.
        code: DriverCode,
    },
    /// Anything else.
    #[error("{call} failed with {code}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// What it answered.
        code: DriverCode,
    },
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: u32 = 2;

/// `CUDA_ERROR_PEER_ACCESS_UNSUPPORTED`, and `TOO_MANY_PEERS`.
const PEER_REFUSED: [u32; 2] = [217, 711];

/// `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`.
const ALREADY_ENABLED: u32 = 704;

/// After these "the process must be terminated and relaunched": DEINITIALIZED, DEVICE_UNAVAILABLE,
/// ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE, CONTAINED, ILLEGAL_ADDRESS, LAUNCH_TIMEOUT,
/// CONTEXT_IS_DESTROYED, ASSERT, HARDWARE_STACK_ERROR, ILLEGAL_INSTRUCTION, MISALIGNED_ADDRESS,
/// INVALID_ADDRESS_SPACE, INVALID_PC, LAUNCH_FAILED, TENSOR_MEMORY_LEAK, MPS_CLIENT_TERMINATED,
/// EXTERNAL_DEVICE.
const LOST: [u32; 18] =
    [4, 46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911];

impl CudaError {
    pub(crate) fn of(call: &'static str, code: DriverCode) -> Self {
        match code.number {
            OUT_OF_MEMORY => Self::OutOfMemory { call },
            number if PEER_REFUSED.contains(&number) => Self::PeerRefused { call, code },
            number if LOST.contains(&number) => Self::DeviceLost { call, code },
            _ if call.starts_with("cuIpc") => Self::IpcRefused { call, code },
            _ => Self::Call { call, code },
        }
    }

    /// Whether what was asked for is the case already.
    pub(crate) fn is_already_enabled(&self) -> bool {
        matches!(self, Self::Call { code, .. } if code.number == ALREADY_ENABLED)
    }

    /// Whether nothing that uses this GPU can succeed any more.
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::DeviceLost { .. })
    }
}
