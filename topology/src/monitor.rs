//! Samples the GPUs now and then, on a thread of its own: the driver takes its time to answer.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::nvml::Driver;
use crate::sample::GpuSample;

/// The latest samples. Sampling ends when it is dropped.
pub struct Monitor {
    latest: Arc<Mutex<Vec<GpuSample>>>,
    _stop: SyncSender<()>,
}

impl Monitor {
    /// Samples once, and then every `interval`, counted from the end of the sampling before. Errors: no
    /// thread can be started.
    pub fn start(driver: Driver, interval: Duration) -> std::io::Result<Self> {
        let latest = Arc::new(Mutex::new(driver.sample()));
        let (stop, stopped) = sync_channel(1);
        let shared = latest.clone();
        let sampling = move || keep_sampling(&driver, interval, &stopped, &shared);
        std::thread::Builder::new().name("gpu-monitor".into()).spawn(sampling)?;
        Ok(Self { latest, _stop: stop })
    }

    /// The latest sample of each GPU.
    pub fn latest(&self) -> Vec<GpuSample> {
        self.latest.lock().clone()
    }
}

fn keep_sampling(
    driver: &Driver,
    interval: Duration,
    stopped: &Receiver<()>,
    latest: &Mutex<Vec<GpuSample>>,
) {
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        let samples = driver.sample();
        *latest.lock() = samples;
    }
}
