//! How the command ends: a code for scripts, and one sentence for people.

use std::process::ExitCode;

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
pub const INTERRUPTED: i32 = 130;

impl Exit {
    /// Prints the sentence and gives the code.
    pub fn with(self, sentence: &str) -> ExitCode {
        eprintln!("stator: {sentence}");
        ExitCode::from(match self {
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Interrupted => INTERRUPTED as u8,
        })
    }
}

/// `--help` and `--version` are answers; everything else is a mistake in the arguments.
pub fn for_arguments(error: &clap::Error) -> ExitCode {
    let _unwritable = error.print();
    if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
}
