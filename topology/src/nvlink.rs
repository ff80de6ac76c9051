//! The NVLinks of one GPU.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

use crate::{bus_id, raw};

/// Links of a GPU that are looked at; today's have 18.
const LINKS_MAX: u32 = 36;

/// The NVLinks of one GPU, those that are up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NvLinks {
    /// Their version, as the driver numbers it.
    pub version: u32,
    /// What goes to switches.
    pub to_switches: Links,
    /// What goes to other GPUs directly.
    pub to_gpus: Vec<DirectLinks>,
}

/// Links to one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectLinks {
    /// Its address.
    pub pci_bus_id: String,
    /// Together.
    pub links: Links,
}

/// Some links together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Links {
    /// How many.
    pub count: u32,
    /// What they carry together, each way.
    pub bytes_per_s: u64,
}

impl Links {
    fn add(&mut self, bytes_per_s: u64) {
        self.count += 1;
        self.bytes_per_s = self.bytes_per_s.saturating_add(bytes_per_s);
    }
}

impl NvLinks {
    /// Those of a GPU; none has no links up. Errors: the driver does not tell, or the GPU has no NVLink.
    pub fn read(nvml: &Nvml, device: &Device<'_>) -> Result<Option<Self>, NvmlError> {
        let mut links = Self::default();
        for number in 0..LINKS_MAX {
            let link = device.link_wrapper_for(number);
            match link.is_active() {
                Ok(true) => {}
                Ok(false) => continue,
                // There are no more links than this.
                Err(NvmlError::InvalidArg) => break,
                Err(NvmlError::NotSupported) if number > 0 => continue,
                Err(error) => return Err(error),
            }
            links.version = links.version.max(link.version().unwrap_or(0));
            let speed = raw::link_mbytes_per_s(nvml, device, number)
                .map_or_else(|| speed_of_version(links.version), |speed| speed * 1_000_000);
            if raw::goes_to_switch(nvml, device, number).unwrap_or(false) {
                links.to_switches.add(speed);
            } else if let Ok(remote) = link.remote_pci_info() {
                links.links_of(&bus_id::of_driver(&remote.bus_id)).add(speed);
            }
        }
        let is_any = links.to_switches.count > 0 || !links.to_gpus.is_empty();
        Ok(is_any.then_some(links))
    }

    fn links_of(&mut self, address: &str) -> &mut Links {
        let at = self.to_gpus.iter().position(|known| known.pci_bus_id == address);
        let at = at.unwrap_or_else(|| {
            let (pci_bus_id, links) = (address.to_string(), Links::default());
            self.to_gpus.push(DirectLinks { pci_bus_id, links });
            self.to_gpus.len() - 1
        });
        &mut self.to_gpus[at].links
    }

    /// What goes to one GPU: directly, or through switches where both have links to some.
    pub fn between(&self, address: &str, other: Option<&Self>) -> Links {
        let direct = self.to_gpus.iter().find(|known| known.pci_bus_id == address);
        let direct = direct.map_or(Links::default(), |direct| direct.links);
        let switched = other.map_or(Links::default(), |other| {
            let (ours, theirs) = (self.to_switches, other.to_switches);
            if theirs.bytes_per_s < ours.bytes_per_s { theirs } else { ours }
        });
        if switched.bytes_per_s > direct.bytes_per_s { switched } else { direct }
    }
}

/// What one link carries each way, in bytes per second, where the driver does not say. NVML numbers the
/// versions 1.0, 2.0, 2.2, 3.0, 3.1, 4.0 and 5.0 from 1 on.
fn speed_of_version(version: u32) -> u64 {
    match version {
        0 | 1 => 20_000_000_000,
        2..=6 => 25_000_000_000,
        _ => 50_000_000_000,
    }
}
