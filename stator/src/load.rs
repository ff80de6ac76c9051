//! `stator loadtest`: the load generator, with signals and a place for its table.

use std::io::Write;

use loadtest::LoadtestError;

use crate::exit::{self, Exit};
use crate::signals::Signals;

/// Runs a load test and prints its report. Ctrl-C ends it early, with a report of what was
/// measured; a second one ends at once.
pub async fn command(arguments: loadtest::Args) -> Result<(), LoadtestError> {
    let mut signals = Signals::listen()?;
    let json_on_stdout = arguments.json.as_deref() == Some("-");
    let interrupted = async move {
        signals.next().await;
        tokio::spawn(async move {
            signals.next().await;
            exit::now(exit::INTERRUPTED);
        });
    };
    let report = loadtest::run(arguments, interrupted).await?;
    let table = report.to_string();
    let _closed = if json_on_stdout {
        std::io::stderr().write_all(table.as_bytes())
    } else {
        std::io::stdout().write_all(table.as_bytes())
    };
    report.check_success()
}

/// The command's exit code.
pub fn exit(error: &LoadtestError) -> Exit {
    match error {
        LoadtestError::Arguments(_) => Exit::Usage,
        LoadtestError::Server(_) | LoadtestError::Resources(_) => Exit::Unavailable,
        LoadtestError::Interrupted => Exit::Interrupted,
    }
}
