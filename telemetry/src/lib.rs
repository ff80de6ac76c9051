//! What people and Prometheus look at: health and metrics, and the server that shows them.

mod admin;
mod metrics;
mod process;

pub use admin::{metrics_route, routes, serve};
pub use metrics::{Metrics, Reading};
