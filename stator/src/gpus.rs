//! `stator gpus`: what GPUs this machine has, how they reach each other, and what is around them. Named for
//! what people look for; that there is none is an answer, not a failure.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use topology::{Gpu, Host, Links, Look, Nic, RdmaPort, Source, Topology};

use crate::cli::GpusArgs;
use crate::error::CommandError;
use crate::hardware::SAMPLE_INTERVAL;

/// Prints a table, or JSON. A closed standard output is no failure.
pub fn command(arguments: &GpusArgs) -> Result<(), CommandError> {
    let limit = Duration::from_secs(arguments.timeout_s.into());
    let Look { topology: found, .. } = Look::around(&Source::default(), SAMPLE_INTERVAL, limit)?;
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&found)
            .map_err(|error| CommandError::Component(error.to_string()))?,
        false => table(&found),
    };
    let _closed = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(())
}

fn table(found: &Topology) -> String {
    let mut parts = Vec::new();
    if let Some(version) = &found.driver_version {
        parts.push(format!("NVIDIA driver {version}"));
    }
    if !found.gpus.is_empty() {
        parts.push(gpu_table(&found.gpus));
    }
    if found.gpus.len() > 1 {
        parts.push(link_table(&found.gpus));
    }
    parts.extend(found.notes.iter().cloned());
    parts.push(host_lines(&found.host));
    parts.join("\n\n")
}

fn gpu_table(gpus: &[Gpu]) -> String {
    let mut rows = vec![
        ["GPU", "Name", "Compute", "Memory", "PCIe", "NVLinks", "NUMA", "Address", "UUID"]
            .map(String::from)
            .to_vec(),
    ];
    for gpu in gpus {
        rows.push(vec![
            gpu.index.to_string(),
            gpu.name.clone(),
            or_unknown(gpu.compute_capability.map(|(major, minor)| format!("{major}.{minor}"))),
            memory(gpu),
            or_unknown(gpu.pcie.map(|pcie| {
                let (generation, lanes) = (pcie.generation, pcie.lanes);
                format!("gen {generation} x{lanes}, {} GB/s", giga(pcie.bytes_per_s))
            })),
            nvlinks(gpu),
            or_unknown(gpu.numa_node.map(|node| node.to_string())),
            gpu.pci_bus_id.clone(),
            gpu.uuid.clone(),
        ]);
        for instance in &gpu.instances {
            let memory = or_unknown(instance.memory_bytes.map(gib));
            let mut row = vec![String::new(), "  instance (MIG)".into(), String::new(), memory];
            row.resize(8, String::new());
            row.push(instance.uuid.clone());
            rows.push(row);
        }
    }
    aligned(&rows)
}

fn memory(gpu: &Gpu) -> String {
    match (gpu.memory_used_bytes, gpu.memory_bytes) {
        (Some(used), Some(all)) => format!("{} of {}", gib(used), gib(all)),
        _ => or_unknown(None),
    }
}

fn nvlinks(gpu: &Gpu) -> String {
    let Some(links) = &gpu.nvlinks else { return "none".into() };
    let all = links.to_gpus.iter().map(|direct| direct.links).chain([links.to_switches]);
    let (count, bytes_per_s) = all.fold((0, 0u64), |(count, speed), links| {
        (count + links.count, speed.saturating_add(links.bytes_per_s))
    });
    let through = if links.to_switches.count > 0 { " (switch)" } else { "" };
    format!("{count}, {} GB/s{through}", giga(bytes_per_s))
}

/// How each GPU of a row reaches that of a column.
fn link_table(gpus: &[Gpu]) -> String {
    let names = gpus.iter().map(|gpu| format!("GPU {}", gpu.index));
    let mut rows = vec![[String::new()].into_iter().chain(names).collect::<Vec<_>>()];
    for gpu in gpus {
        let to = |other: &Gpu| match gpu.peers.iter().find(|peer| peer.index == other.index) {
            None => "-".to_string(),
            Some(peer) => match (peer.nvlink, peer.path) {
                (Links { count: 0, .. }, path) => or_unknown(path.map(String::from)),
                (links, _) => format!("NVLink {} GB/s", giga(links.bytes_per_s)),
            },
        };
        let name = format!("GPU {}", gpu.index);
        rows.push([name].into_iter().chain(gpus.iter().map(to)).collect());
    }
    format!("By NVLink, each way, or by PCIe through:\n{}", aligned(&rows))
}

fn host_lines(host: &Host) -> String {
    let mut lines = format!("Host     {} CPUs", host.cpus);
    for node in &host.numa_nodes {
        let memory = or_unknown(node.memory_bytes.map(gib));
        let _to_a_string = write!(lines, "\n  NUMA {}  CPUs {}, {memory}", node.node, node.cpus);
    }
    let nics = host.nics.iter().map(nic_line);
    for line in nics.chain(host.rdma_ports.iter().map(port_line)) {
        let _to_a_string = write!(lines, "\n{line}");
    }
    lines
}

fn nic_line(nic: &Nic) -> String {
    let Nic { name, is_up, bytes_per_s, numa_node, ip } = nic;
    format!("Network  {name}{}{}", link_text(*is_up, *bytes_per_s, *numa_node), ip_text(*ip))
}

fn port_line(port: &RdmaPort) -> String {
    let RdmaPort { device, port: number, link_layer, interfaces, .. } = port;
    let link = link_text(port.is_up, port.bytes_per_s, port.numa_node);
    let over = match interfaces.is_empty() {
        true => String::new(),
        false => format!(", {}", interfaces.join(" ")),
    };
    format!("RDMA     {device} port {number} {link_layer}{link}{over}{}", ip_text(port.ip))
}

fn ip_text(ip: Option<bool>) -> &'static str {
    if ip == Some(false) { ", no IP" } else { "" }
}

fn link_text(is_up: bool, bytes_per_s: Option<u64>, numa_node: Option<u32>) -> String {
    let speed = match bytes_per_s {
        Some(speed) => format!(" {} Gbit/s", (speed as f64 * 8.0 / 1e9 * 10.0).round() / 10.0),
        None => " of unknown speed".into(),
    };
    let node = numa_node.map_or_else(String::new, |node| format!(", NUMA {node}"));
    format!("{}{node}{}", speed, if is_up { "" } else { ", down" })
}

/// Columns as wide as their widest cell, with two spaces between them.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn or_unknown(known: Option<String>) -> String {
    known.unwrap_or_else(|| "?".into())
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// Billions, without a fraction.
fn giga(number: u64) -> String {
    format!("{:.0}", number as f64 / 1e9)
}
