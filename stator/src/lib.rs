//! The command's parts: its arguments, and `serve`, which starts every component in one process.

pub mod cli;
mod engines;
pub mod exit;
pub mod model_directory;
pub mod serve;
pub mod signals;
