//! Why there is no report.

/// Why a load test did not begin, or measured nothing. `Display` is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum LoadtestError {
    /// The arguments are wrong.
    #[error("{0}")]
    Arguments(String),
    /// The server cannot be reached, or not used as it answers.
    #[error("{0}")]
    Server(String),
    /// The system refuses what the load test needs.
    #[error("the system refuses what a load test needs: {0}")]
    Resources(#[from] std::io::Error),
    /// The user ended it before anything was measured.
    #[error("interrupted before the first request")]
    Interrupted,
}
