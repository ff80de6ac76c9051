//! What a process with workers finds of the machine that it runs on.

use std::sync::Arc;
use std::time::Duration;

use protocol::v1;
use telemetry::Metrics;
use topology::{Device, Look, Monitor, NoGpu, Source, Topology};

use crate::error::CommandError;
use crate::gpu_metrics;

/// Between two samples of the GPUs. Each takes the driver some 40 ms per GPU.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// A driver that takes longer counts as wedged. One that nobody used before may take 3 s for each GPU, of
/// which a host has eight.
pub const DRIVER_LIMIT_S: u32 = 30;
const DRIVER_LIMIT: Duration = Duration::from_secs(DRIVER_LIMIT_S as u64);

/// See the module's description.
pub struct Hardware {
    source: Source,
    topology: Topology,
    /// Absent without GPUs.
    monitor: Option<Arc<Monitor>>,
}

impl Hardware {
    /// Looks around, and says in the log what cannot be read. Errors: no thread can be started.
    pub async fn find() -> Result<Self, CommandError> {
        let found = tokio::task::spawn_blocking(Self::look);
        Ok(found.await.map_err(|error| CommandError::Component(error.to_string()))??)
    }

    fn look() -> std::io::Result<Self> {
        let source = Source::default();
        let Look { topology, monitor } = Look::around(&source, SAMPLE_INTERVAL, DRIVER_LIMIT)?;
        match &monitor {
            Ok(_) => topology.notes.iter().for_each(|note| tracing::warn!("{note}")),
            Err(silent @ NoGpu::Silent(_)) => tracing::warn!("{silent}"),
            Err(none) => tracing::info!("{none}"),
        }
        Ok(Self { source, topology, monitor: monitor.ok().map(Arc::new) })
    }

    /// What a worker of this process registers that computes on `device`, and gives and reads KV blocks
    /// by ways of these names.
    pub fn registration(&self, device: &Device, kv_ways: &[&str]) -> v1::Hardware {
        self.topology.hardware(&self.source, device, kv_ways)
    }

    /// Shows from now on what the GPUs do, where there are some.
    pub fn show(&self, metrics: &Metrics) {
        if let Some(monitor) = &self.monitor {
            let monitor = monitor.clone();
            gpu_metrics::show(metrics, move || monitor.latest());
        }
    }
}
