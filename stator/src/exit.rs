//! How the command ends: a code for scripts, and one sentence for people.

use std::io::Write;

/// Why the command ended, as BSD's sysexits number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 64: arguments, configuration, or a missing, corrupt or unsupported model.
    Usage,
    /// 69: something needed is unavailable, such as a taken port.
    Unavailable,
    /// 70: a defect.
    Internal,
    /// 130: Ctrl-C, with nothing to show for it.
    Interrupted,
}

/// 130: a second Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Ends the process at once. Libraries do not tidy up behind threads that still use them: an engine
/// may be in the middle of a step on a GPU, whose driver would be taken from under it.
pub fn now(code: u8) -> ! {
    let _unwritable = std::io::stdout().flush();
    // SAFETY: the function does nothing but end the process.
    unsafe { libc::_exit(code.into()) }
}

impl Exit {
    /// Prints the sentence and gives the code.
    pub fn with(self, sentence: &str) -> u8 {
        eprintln!("stator: {sentence}");
        match self {
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Interrupted => INTERRUPTED,
        }
    }
}

/// `--help` and `--version` are answers; everything else is a mistake in the arguments.
pub fn for_arguments(error: &clap::Error) -> u8 {
    let _unwritable = error.print();
    if error.use_stderr() { 64 } else { 0 }
}
