//! Looks around without waiting for ever: where a GPU is wedged, the driver may answer nobody.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::{Driver, Monitor, NoGpu, Source, Topology};

/// What a look around came to.
pub struct Look {
    /// What is here.
    pub topology: Topology,
    /// What goes on looking at the GPUs, or why there are none.
    pub monitor: Result<Monitor, NoGpu>,
}

impl Look {
    /// Reads everything, and samples the GPUs from then on (see `Monitor::start`). A driver that takes
    /// longer than `limit` counts as none. Errors: no thread can be started.
    pub fn around(source: &Source, interval: Duration, limit: Duration) -> std::io::Result<Self> {
        let (answer, answered) = sync_channel(1);
        let asked = source.clone();
        // Nobody can call a thread back from the driver. This one drops what comes too late, and ends.
        let asking = move || {
            let _too_late = answer.send(Self::by(Driver::open(&asked), &asked, interval));
        };
        std::thread::Builder::new().name("gpu-look".into()).spawn(asking)?;
        let silent = |_| Self::by(Err(NoGpu::Silent(limit)), source, interval);
        answered.recv_timeout(limit).unwrap_or_else(silent)
    }

    fn by(
        driver: Result<Driver, NoGpu>,
        source: &Source,
        interval: Duration,
    ) -> std::io::Result<Self> {
        let topology = Topology::by(&driver, source);
        let monitor = match driver {
            Ok(driver) => Ok(Monitor::start(driver, interval)?),
            Err(none) => Err(none),
        };
        Ok(Self { topology, monitor })
    }
}
