//! The command's parts: its arguments, `serve`, which starts every component in one process, one
//! file per component of a cluster, and `loadtest`, which measures a server.

mod addresses;
pub mod cli;
mod cluster;
mod engines;
pub mod error;
pub mod exit;
pub mod gateway;
pub mod health;
mod kv_source;
pub mod load;
pub mod model_directory;
mod observe;
pub mod router;
pub mod serve;
pub mod signals;
mod ucx;
pub mod worker;
