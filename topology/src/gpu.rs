//! One GPU.

use std::path::Path;

use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

use crate::bus_id;
use crate::host::numa_node_of;
use crate::nvlink::{Links, NvLinks};
use crate::nvml::{Answer, answer};
use crate::raw;

/// Instances of one card that are looked at.
const MIG_INSTANCES_MAX: u32 = 16;

/// A GPU.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Gpu {
    /// Its number in the driver's order, which is not CUDA's unless CUDA_DEVICE_ORDER is PCI_BUS_ID.
    pub index: u32,
    /// Its name for life: "GPU-…".
    pub uuid: String,
    /// What it is.
    pub name: String,
    /// Major and minor.
    pub compute_capability: Option<(u32, u32)>,
    /// All of its memory.
    pub memory_bytes: Option<u64>,
    /// That someone uses.
    pub memory_used_bytes: Option<u64>,
    /// As the kernel writes it: "0000:3b:00.0".
    pub pci_bus_id: String,
    /// The NUMA node that it is next to.
    pub numa_node: Option<u32>,
    /// Its slot.
    pub pcie: Option<Pcie>,
    /// Absent without NVLinks that are up.
    pub nvlinks: Option<NvLinks>,
    /// Whether it is divided into instances, which then are what computes.
    pub mig: bool,
    /// These instances.
    pub instances: Vec<MigInstance>,
    /// The others.
    pub peers: Vec<Peer>,
}

/// What a slot and a GPU can do together. Idle GPUs lower generation and lanes, so that the present ones
/// say nothing of what a copy will see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pcie {
    /// Generation.
    pub generation: u32,
    /// Lanes.
    pub lanes: u32,
    /// What that carries each way.
    pub bytes_per_s: u64,
}

/// A part of a GPU that computes by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigInstance {
    /// Its name: "MIG-…".
    pub uuid: String,
    /// Its memory.
    pub memory_bytes: Option<u64>,
}

/// Another GPU of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its number.
    pub index: u32,
    /// Its address.
    pub pci_bus_id: String,
    /// NVLinks to it, directly or through switches.
    pub nvlink: Links,
    /// What PCIe goes through between both: "one switch", "several switches", "host bridge",
    /// "one socket", "another socket", "one board".
    pub path: Option<&'static str>,
}

/// One GPU, with notes about what is not known of it. None where it cannot be used; a note says why.
pub fn read(nvml: &Nvml, index: u32, root: &Path, notes: &mut Vec<String>) -> Option<Gpu> {
    let name = format!("GPU {index}");
    match read_device(nvml, index, root, notes) {
        Ok(gpu) => Some(gpu),
        Err(NvmlError::GpuLost) => {
            notes.push(format!("{name} fell off its bus and is left out; restart the machine"));
            None
        }
        Err(NvmlError::ResetRequired) => {
            notes.push(format!(
                "{name} has to be reset and is left out; nvidia-smi --gpu-reset -i {index}"
            ));
            None
        }
        Err(NvmlError::NoPermission) => {
            notes.push(format!(
                "{name} is left out: this user may not use it; give it access to /dev/nvidia{index}"
            ));
            None
        }
        Err(error) => {
            notes.push(format!("{name} is left out: {error}"));
            None
        }
    }
}

fn read_device(
    nvml: &Nvml,
    index: u32,
    root: &Path,
    notes: &mut Vec<String>,
) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let name = format!("GPU {index}");
    let mut facts = Facts { name: &name, notes };
    // Without these it could be neither named nor found.
    let uuid = device.uuid()?;
    let pci_bus_id = bus_id::of_driver(&device.pci_info()?.bus_id);
    let memory = facts.ask("its memory", raw::memory(nvml, &device))?;
    let capability = facts.ask("its compute capability", device.cuda_compute_capability())?;
    let mig = facts.ask("whether it is divided (MIG)", device.mig_mode())?;
    let mig = mig.is_some_and(|mode| mode.current == 1);
    Ok(Gpu {
        index,
        uuid,
        name: facts.ask("its name", device.name())?.unwrap_or_default(),
        compute_capability: capability.and_then(|capability| {
            Some((capability.major.try_into().ok()?, capability.minor.try_into().ok()?))
        }),
        memory_bytes: memory.map(|memory| memory.total_bytes),
        memory_used_bytes: memory.map(|memory| memory.used_bytes),
        numa_node: numa_node_of(&root.join("sys/bus/pci/devices").join(&pci_bus_id)),
        pcie: pcie(&device, &mut facts)?,
        nvlinks: facts.ask("its NVLinks", NvLinks::read(nvml, &device))?.flatten(),
        instances: if mig { instances(nvml, &device, &mut facts)? } else { Vec::new() },
        mig,
        pci_bus_id,
        peers: Vec::new(),
    })
}

/// Asks for what one may do without.
struct Facts<'a> {
    name: &'a str,
    notes: &'a mut Vec<String>,
}

impl Facts<'_> {
    /// Errors: the GPU cannot be used any more.
    fn ask<T>(&mut self, what: &str, asked: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
        match answer(asked, self.name, what, self.notes) {
            Answer::Known(told) => Ok(Some(told)),
            Answer::Unknown => Ok(None),
            Answer::Lost(error) => Err(error),
        }
    }
}

fn pcie(device: &Device<'_>, facts: &mut Facts<'_>) -> Result<Option<Pcie>, NvmlError> {
    let generation = facts.ask("its PCIe generation", device.max_pcie_link_gen())?;
    let lanes = facts.ask("its PCIe lanes", device.max_pcie_link_width())?;
    Ok(generation.zip(lanes).and_then(|(generation, lanes)| {
        let bytes_per_s = lane_bytes_per_s(generation)?.checked_mul(lanes.into())?;
        Some(Pcie { generation, lanes, bytes_per_s })
    }))
}

/// What one lane carries each way, after its encoding; a later generation counts as the last one known.
fn lane_bytes_per_s(generation: u32) -> Option<u64> {
    Some(match generation {
        0 => return None,
        1 => 250_000_000,
        2 => 500_000_000,
        3 => 984_600_000,
        4 => 1_969_200_000,
        5 => 3_938_400_000,
        _ => 7_563_000_000,
    })
}

fn instances(
    nvml: &Nvml,
    device: &Device<'_>,
    facts: &mut Facts<'_>,
) -> Result<Vec<MigInstance>, NvmlError> {
    let count = facts.ask("its instances", device.mig_device_count())?.unwrap_or(0);
    let mut instances = Vec::new();
    for number in 0..count.min(MIG_INSTANCES_MAX) {
        // Numbers have gaps, which the driver does not find.
        let asked = device.mig_device_by_index(number);
        let Some(instance) = facts.ask("an instance", asked)? else { continue };
        let Some(uuid) = facts.ask("an instance's name", instance.uuid())? else { continue };
        let memory = facts.ask("an instance's memory", raw::memory(nvml, &instance))?;
        instances.push(MigInstance { uuid, memory_bytes: memory.map(|memory| memory.total_bytes) });
    }
    Ok(instances)
}

/// Says of each GPU how it reaches each other one.
pub fn find_peers(nvml: &Nvml, gpus: &mut [Gpu], notes: &mut Vec<String>) {
    let peers_of = |gpu: &Gpu, gpus: &[Gpu], notes: &mut Vec<String>| -> Vec<Peer> {
        let others = gpus.iter().filter(|other| other.index != gpu.index);
        others.map(|other| peer(nvml, gpu, other, notes)).collect()
    };
    let found: Vec<Vec<Peer>> = gpus.iter().map(|gpu| peers_of(gpu, gpus, notes)).collect();
    for (gpu, peers) in gpus.iter_mut().zip(found) {
        gpu.peers = peers;
    }
}

fn peer(nvml: &Nvml, gpu: &Gpu, other: &Gpu, notes: &mut Vec<String>) -> Peer {
    let level = || {
        let other = nvml.device_by_index(other.index)?;
        nvml.device_by_index(gpu.index)?.topology_common_ancestor(other)
    };
    let what = format!("its way to GPU {}", other.index);
    let level = match answer(level(), &format!("GPU {}", gpu.index), &what, notes) {
        Answer::Known(level) => Some(level),
        Answer::Unknown | Answer::Lost(_) => None,
    };
    let nvlink = gpu.nvlinks.as_ref().map_or_else(Links::default, |links| {
        links.between(&other.pci_bus_id, other.nvlinks.as_ref())
    });
    Peer {
        index: other.index,
        pci_bus_id: other.pci_bus_id.clone(),
        nvlink,
        path: level.map(path_of),
    }
}

fn path_of(level: TopologyLevel) -> &'static str {
    match level {
        TopologyLevel::Internal => "one board",
        TopologyLevel::Single => "one switch",
        TopologyLevel::Multiple => "several switches",
        TopologyLevel::HostBridge => "host bridge",
        TopologyLevel::Node => "one socket",
        TopologyLevel::System => "another socket",
    }
}
