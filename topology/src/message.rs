//! What a worker tells others of its hardware.

use std::path::Path;

use protocol::v1;

use crate::gpu::{Gpu, Peer};
use crate::host::process_id;
use crate::{Source, Topology};

/// What computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The host's CPUs.
    Cpu,
    /// The GPU, or the instance of one, of this UUID, which may lack its prefix (`GPU-`, `MIG-`).
    Gpu(String),
}

impl Topology {
    /// What a worker of this process registers that computes on `device` and moves KV blocks by
    /// `kv_ways`.
    pub fn hardware(&self, source: &Source, device: &Device, kv_ways: &[&str]) -> v1::Hardware {
        let own = match device {
            Device::Cpu => None,
            Device::Gpu(uuid) => self.gpus.iter().find(|gpu| gpu.is_called(uuid)),
        };
        v1::Hardware {
            place: Some(self.place(&source.root, device, own)),
            gpus: self.gpus.iter().map(gpu_message).collect(),
            numa_node: own.and_then(|gpu| gpu.numa_node),
            nics: self.nic_messages(),
            kv_ways: kv_ways.iter().map(ToString::to_string).collect(),
        }
    }

    fn place(&self, root: &Path, device: &Device, own: Option<&Gpu>) -> v1::Place {
        let device = match device {
            Device::Cpu => "cpu".to_string(),
            Device::Gpu(uuid) => uuid.clone(),
        };
        v1::Place {
            host_id: bytes_of_hex(&self.host.id).into(),
            process_id: bytes_of_hex(&process_id(root)).into(),
            device,
            pci_bus_id: own.map_or_else(String::new, |gpu| gpu.pci_bus_id.clone()),
        }
    }

    /// Cards that are up, and ports for RDMA in place of the cards over the same hardware.
    fn nic_messages(&self) -> Vec<v1::Nic> {
        let host = &self.host;
        let ports = host.rdma_ports.iter().filter(|port| port.is_up);
        let rdma = ports.clone().map(|port| v1::Nic {
            name: port.device.clone(),
            bytes_per_s: port.bytes_per_s.unwrap_or(0),
            numa_node: port.numa_node,
            rdma: true,
            ip: port.ip,
        });
        let is_told = |name: &String| ports.clone().any(|port| port.interfaces.contains(name));
        let plain = host.nics.iter().filter(|nic| nic.is_up && !is_told(&nic.name));
        let plain = plain.map(|nic| v1::Nic {
            name: nic.name.clone(),
            bytes_per_s: nic.bytes_per_s.unwrap_or(0),
            numa_node: nic.numa_node,
            rdma: false,
            ip: nic.ip,
        });
        rdma.chain(plain).collect()
    }
}

impl Gpu {
    fn is_called(&self, uuid: &str) -> bool {
        let instances = self.instances.iter().map(|instance| &instance.uuid);
        instances.chain([&self.uuid]).any(|own| without_prefix(own) == without_prefix(uuid))
    }
}

/// CUDA knows UUIDs without what tells GPUs from instances.
fn without_prefix(uuid: &str) -> &str {
    ["GPU-", "MIG-"].iter().find_map(|prefix| uuid.strip_prefix(prefix)).unwrap_or(uuid)
}

fn gpu_message(gpu: &Gpu) -> v1::Gpu {
    let (major, minor) = gpu.compute_capability.unwrap_or_default();
    let switches = gpu.nvlinks.as_ref().map_or(0, |links| links.to_switches.bytes_per_s);
    v1::Gpu {
        uuid: gpu.uuid.clone(),
        name: gpu.name.clone(),
        compute_capability_major: major,
        compute_capability_minor: minor,
        memory_bytes: gpu.memory_bytes.unwrap_or(0),
        pci_bus_id: gpu.pci_bus_id.clone(),
        numa_node: gpu.numa_node,
        pcie_bytes_per_s: gpu.pcie.map_or(0, |pcie| pcie.bytes_per_s),
        nvlink_switch_bytes_per_s: switches,
        peers: gpu.peers.iter().map(peer_message).collect(),
    }
}

fn peer_message(peer: &Peer) -> v1::GpuPeer {
    v1::GpuPeer {
        pci_bus_id: peer.pci_bus_id.clone(),
        nvlink_bytes_per_s: peer.nvlink.bytes_per_s,
        pcie_path: peer.path.unwrap_or_default().to_string(),
    }
}

/// The bytes of an even number of hexadecimal digits; none of anything else.
fn bytes_of_hex(digits: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    };
    digits.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>().unwrap_or_default()
}
