//! What a process with workers finds of the machine that it runs on.

use std::sync::Arc;
use std::time::Duration;

use protocol::v1;
use telemetry::Metrics;
use topology::{Device, Driver, Monitor, Source, Topology};

use crate::error::CommandError;
use crate::gpu_metrics;

/// Between two samples of the GPUs. Each takes the driver some 40 ms per GPU.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

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
        // The driver may take seconds where nobody used it before.
        let found = tokio::task::spawn_blocking(Self::look);
        Ok(found.await.map_err(|error| CommandError::Component(error.to_string()))??)
    }

    fn look() -> std::io::Result<Self> {
        let source = Source::default();
        let driver = Driver::open(&source);
        let topology = Topology::by(&driver, &source);
        let monitor = match driver {
            Ok(driver) => {
                topology.notes.iter().for_each(|note| tracing::warn!("{note}"));
                Some(Arc::new(Monitor::start(driver, SAMPLE_INTERVAL)?))
            }
            Err(none) => {
                tracing::info!("{none}");
                None
            }
        };
        Ok(Self { source, topology, monitor })
    }

    /// What a worker of this process registers that computes on `device`, and gives and reads KV blocks
    /// by ways of these names.
    pub fn registration(&self, device: &Device, kv_ways: &[&str]) -> v1::Hardware {
        self.topology.hardware(&self.source, device, kv_ways)
    }

    /// Shows from now on what the GPUs do, where there are some.
    pub fn show(&self, metrics: &Metrics) {
        if let Some(monitor) = &self.monitor {
            gpu_metrics::show(metrics, monitor);
        }
    }
}
