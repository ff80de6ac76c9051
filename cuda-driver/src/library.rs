//! Libraries that are found at run time.

use std::error::Error;

/// Why one cannot be loaded, in the system's words where it has some.
pub fn why_not(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |reason| reason.to_string())
}
