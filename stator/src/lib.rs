//! The command's parts: its arguments, `serve`, which starts every component in one process, one
//! file per component of a cluster, `loadtest`, which measures a server, and `gpus`, which looks around.

mod addresses;
pub mod cli;
mod cluster;
pub mod cuda_copies;
mod engines;
pub mod error;
pub mod exit;
pub mod gateway;
mod gpu_metrics;
pub mod gpus;
mod hardware;
pub mod health;
mod kv_source;
pub mod load;
pub mod model_directory;
mod observe;
pub mod router;
pub mod serve;
pub mod signals;
mod summary;
mod ucx;
pub mod weights;
pub mod worker;
