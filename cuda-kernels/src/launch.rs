//! What a driver is told to run a kernel.

use std::ffi::c_void;

/// Dynamic shared memory up to which a kernel runs as it is. For more, the driver wants
/// `cuFuncSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)` once.
pub const SHARED_BYTES_WITHOUT_OPT_IN: u32 = 48 << 10;

/// Blocks that a grid may have along y and z.
const GRID_YZ_MAX: usize = 65_535;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// An address in device memory.
    Pointer(u64),
    /// An unsigned integer of 32 bits.
    U32(u32),
    /// An unsigned integer of 64 bits.
    U64(u64),
    /// A number.
    F32(f32),
}

/// One run of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name in its module.
    pub kernel: String,
    /// Blocks of threads.
    pub grid: [u32; 3],
    /// Threads of a block, in one dimension.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// In the order of the kernel's parameters.
    pub arguments: Vec<Argument>,
}

/// More than a launch can say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A grid, or a number that a kernel takes as 32 bits.
    #[error("{what} are {count}, and one launch of {kernel} takes {max} at most: use several")]
    TooMany {
        /// Which kernel.
        kernel: &'static str,
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A number that vectors do not divide.
    #[error("{what} of {kernel} are {count}, which is no multiple of {of}")]
    NoMultiple {
        /// Which kernel.
        kernel: &'static str,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// What must divide it.
        of: usize,
    },
}

impl Launch {
    /// Calls `launch` with the array of pointers to arguments that `cuLaunchKernel` takes.
    pub fn with_parameters<R>(&self, launch: impl FnOnce(&mut [*mut c_void]) -> R) -> R {
        let mut words: Vec<[u8; 8]> = self.arguments.iter().map(Argument::bytes).collect();
        let mut pointers: Vec<*mut c_void> =
            words.iter_mut().map(|word| word.as_mut_ptr().cast()).collect();
        launch(&mut pointers)
    }
}

impl Argument {
    fn bytes(&self) -> [u8; 8] {
        match self {
            Self::Pointer(value) | Self::U64(value) => value.to_ne_bytes(),
            Self::U32(value) => first_four(value.to_ne_bytes()),
            Self::F32(value) => first_four(value.to_ne_bytes()),
        }
    }
}

fn first_four(bytes: [u8; 4]) -> [u8; 8] {
    let [a, b, c, d] = bytes;
    [a, b, c, d, 0, 0, 0, 0]
}

/// A number that a kernel takes as 32 bits.
pub(crate) fn count(
    kernel: &'static str,
    what: &'static str,
    count: usize,
) -> Result<u32, LaunchError> {
    let max = u32::MAX as usize;
    u32::try_from(count).map_err(|_| LaunchError::TooMany { kernel, what, count, max })
}

/// A dimension of a grid along y or z.
pub(crate) fn along_yz(
    kernel: &'static str,
    what: &'static str,
    count: usize,
) -> Result<u32, LaunchError> {
    let max = GRID_YZ_MAX;
    if count > max {
        Err(LaunchError::TooMany { kernel, what, count, max })
    } else {
        Ok(count as u32)
    }
}

pub(crate) fn multiple_of(
    kernel: &'static str,
    what: &'static str,
    count: usize,
    of: usize,
) -> Result<(), LaunchError> {
    if count.is_multiple_of(of) {
        return Ok(());
    }
    Err(LaunchError::NoMultiple { kernel, what, count, of })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_point_to_the_arguments_in_order() {
        let arguments = vec![
            Argument::Pointer(0x7f00_0000_1000),
            Argument::U32(7),
            Argument::F32(1.5),
            Argument::U64(1 << 40),
        ];
        let launch =
            Launch { kernel: "k".into(), grid: [1; 3], threads: 32, shared_bytes: 0, arguments };
        launch.with_parameters(|parameters| {
            let [pointer, number, float, long] = parameters else { panic!("four parameters") };
            // SAFETY: each points to eight bytes that live for this call.
            unsafe {
                assert_eq!(*pointer.cast::<u64>(), 0x7f00_0000_1000);
                assert_eq!(*number.cast::<u32>(), 7);
                assert_eq!(*float.cast::<f32>(), 1.5);
                assert_eq!(*long.cast::<u64>(), 1 << 40);
            }
        });
    }

    #[test]
    fn what_does_not_fit_is_refused_in_a_sentence() {
        let refusal = along_yz("embed", "rows", 70_000).unwrap_err().to_string();
        assert_eq!(
            refusal,
            "rows are 70000, and one launch of embed takes 65535 at most: use several"
        );
        let refusal = multiple_of("embed", "elements", 6, 4).unwrap_err().to_string();
        assert_eq!(refusal, "elements of embed are 6, which is no multiple of 4");
    }
}
