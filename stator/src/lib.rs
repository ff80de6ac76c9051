//! The command's parts: its arguments, `serve`, which starts every component in one process, and
//! `loadtest`, which measures a server.

pub mod cli;
mod engines;
pub mod exit;
pub mod load;
pub mod model_directory;
pub mod serve;
pub mod signals;
