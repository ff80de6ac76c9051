//! The host, as its kernel describes it.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::ip::Ip;
use crate::network::{self, Nic, RdmaPort};

/// Entries read of one directory of the kernel's; no host has as many of anything here.
pub const ENTRIES_MAX: usize = 1024;

/// The host, as far as it matters to whoever moves KV.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Host {
    /// A hash of what the kernel draws at each boot, in hexadecimal digits; empty where it does not say.
    /// Containers of one kernel have the same.
    pub id: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// By their numbers.
    pub numa_nodes: Vec<NumaNode>,
    /// Network cards and bonds of such.
    pub nics: Vec<Nic>,
    /// Ports of devices for RDMA.
    pub rdma_ports: Vec<RdmaPort>,
}

/// A part of the host whose CPUs and memory are close to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NumaNode {
    /// Its number.
    pub node: u32,
    /// Its CPUs as the kernel lists them: "0-15,32-47".
    pub cpus: String,
    /// Its memory.
    pub memory_bytes: Option<u64>,
}

impl Host {
    /// Reads what there is below `root`.
    pub fn read(root: &Path) -> Self {
        let online = text(&root.join("sys/devices/system/cpu/online"));
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let ip = Ip::read(root);
        Self {
            id: boot_id(root).map_or_else(String::new, |boot| hash("host", &[&boot])),
            cpus: online.and_then(|list| count(&list)).unwrap_or_else(available),
            numa_nodes: numa_nodes(root),
            nics: network::nics(root, &ip),
            rdma_ports: network::rdma_ports(root, &ip),
        }
    }
}

/// What no other process of this kernel has, in hexadecimal digits; empty where the kernel says too
/// little.
pub fn process_id(root: &Path) -> String {
    let own = || {
        let stat = text(&root.join("proc/self/stat"))?;
        // The name in parentheses may contain anything; what follows it begins with the third field,
        // and the 22nd is the moment of the process' start.
        let start = stat.rsplit_once(") ")?.1.split(' ').nth(22 - 3)?.to_string();
        // A number that other containers may have as well, but not in the same name space.
        let space = fs::read_link(root.join("proc/self/ns/pid")).ok()?;
        let number = std::process::id().to_string();
        Some(hash("process", &[&boot_id(root)?, &space.to_string_lossy(), &number, &start]))
    };
    own().unwrap_or_default()
}

fn boot_id(root: &Path) -> Option<String> {
    text(&root.join("proc/sys/kernel/random/boot_id")).filter(|id| !id.is_empty())
}

/// 128 bits of a hash that tells nothing of what went into it.
fn hash(what: &str, parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("stator topology 1");
    for part in [&[what], parts].concat() {
        hasher.update(part.as_bytes()).update(b"\n");
    }
    hasher.finalize().to_hex()[..32].to_string()
}

fn numa_nodes(root: &Path) -> Vec<NumaNode> {
    let nodes = root.join("sys/devices/system/node");
    let node = |name: &String| {
        let node = name.strip_prefix("node")?.parse().ok()?;
        let at = nodes.join(name);
        let cpus = text(&at.join("cpulist")).unwrap_or_default();
        Some(NumaNode { node, cpus, memory_bytes: memory_bytes(&at) })
    };
    let mut found: Vec<NumaNode> = names(&nodes).iter().filter_map(node).collect();
    found.sort_by_key(|node| node.node);
    found
}

/// From "Node 0 MemTotal:       65800000 kB".
fn memory_bytes(node: &Path) -> Option<u64> {
    let info = text(&node.join("meminfo"))?;
    let (_, total) = info.split_once("MemTotal:")?;
    let kib: u64 = total.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The NUMA node of a device, from its directory; none where there is but one, or it is unknown.
pub fn numa_node_of(device: &Path) -> Option<u32> {
    // The kernel writes -1 where it does not know.
    text(&device.join("numa_node"))?.parse().ok()
}

/// CPUs in a list like "0-15,32-47".
fn count(list: &str) -> Option<usize> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').map(range).try_fold(0usize, |sum, cpus| sum.checked_add(cpus?))
}

/// A small file's text, without the end of its line. The kernel refuses some reads of files that are
/// there.
pub fn text(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_string())
}

/// What a directory has, in the order of names.
pub fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut names: Vec<String> = entries.take(ENTRIES_MAX).filter_map(name).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        let table = [
            ("0-15,32-47", Some(32)),
            ("0", Some(1)),
            ("0-1,4", Some(3)),
            ("", None),
            ("3-1", None),
            ("0-18446744073709551615", None),
            ("0-x", None),
        ];
        for (list, expected) in table {
            assert_eq!(count(list), expected, "{list}");
        }
    }

    #[test]
    fn this_process_has_a_name_of_its_own() {
        let root = Path::new("/");
        let (host, own) = (Host::read(root).id, process_id(root));
        assert_eq!((host.len(), own.len()), (32, 32));
        assert_ne!(host, own);
        assert_eq!(own, process_id(root), "always the same one");
    }
}
