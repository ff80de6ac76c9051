//! Network cards and devices for RDMA.

use std::path::Path;

use serde::Serialize;

use crate::host::{names, numa_node_of, text};
use crate::ip::Ip;

/// A network card, or a bond of several. Interfaces without hardware behind them are none: what they say
/// of their speed is made up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// As the kernel calls it.
    pub name: String,
    /// Whether its link is up.
    pub is_up: bool,
    /// Of its link, each way; absent where it does not say.
    pub bytes_per_s: Option<u64>,
    /// The NUMA node that it is next to.
    pub numa_node: Option<u32>,
    /// Whether IP goes over it; absent where that cannot be told.
    pub ip: Option<bool>,
}

/// A port of a device for RDMA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RdmaPort {
    /// The device as the kernel calls it: "mlx5_0".
    pub device: String,
    /// The port's number.
    pub port: u32,
    /// Whether it is active.
    pub is_up: bool,
    /// "InfiniBand", or "Ethernet" (RoCE).
    pub link_layer: String,
    /// Each way; absent where it does not say.
    pub bytes_per_s: Option<u64>,
    /// The NUMA node that the device is next to.
    pub numa_node: Option<u32>,
    /// Interfaces over the same hardware.
    pub interfaces: Vec<String>,
    /// Whether IP goes over these; absent where that cannot be told.
    pub ip: Option<bool>,
}

/// All network cards, by name.
pub fn nics(root: &Path, ip: &Ip) -> Vec<Nic> {
    let interfaces = root.join("sys/class/net");
    let nic = |name: String| {
        let at = interfaces.join(&name);
        let has_hardware = at.join("device").exists() || at.join("bonding").exists();
        has_hardware.then(|| Nic {
            is_up: text(&at.join("operstate")).is_some_and(|state| state == "up"),
            bytes_per_s: link_bytes_per_s(&at),
            numa_node: numa_node_of(&at.join("device")),
            ip: ip.is_over(&name),
            name,
        })
    };
    names(&interfaces).into_iter().filter_map(nic).collect()
}

/// The kernel writes -1, or nothing, for a card that is down or does not know; virtual cards may say 0 or
/// the largest number there is.
fn link_bytes_per_s(interface: &Path) -> Option<u64> {
    let mbit: u32 = text(&interface.join("speed"))?.parse().ok()?;
    (1..u32::MAX).contains(&mbit).then(|| u64::from(mbit) * 1_000_000 / 8)
}

/// All ports of all devices for RDMA, by name and number.
pub fn rdma_ports(root: &Path, ip: &Ip) -> Vec<RdmaPort> {
    let devices = root.join("sys/class/infiniband");
    let ports_of = |device: String| {
        let at = devices.join(&device);
        let numa_node = numa_node_of(&at.join("device"));
        let interfaces = names(&at.join("device/net"));
        let numbers = names(&at.join("ports"));
        let port = move |number: String| {
            let port = at.join("ports").join(&number);
            let said = |file: &str| text(&port.join(file)).unwrap_or_default();
            let link_layer = said("link_layer");
            Some(RdmaPort {
                device: device.clone(),
                port: number.parse().ok()?,
                // "4: ACTIVE"
                is_up: said("state").ends_with("ACTIVE"),
                ip: ip_over(&link_layer, &interfaces, ip),
                link_layer,
                bytes_per_s: rate_bytes_per_s(&said("rate")),
                numa_node,
                interfaces: interfaces.clone(),
            })
        };
        numbers.into_iter().filter_map(port)
    };
    names(&devices).into_iter().flat_map(ports_of).collect()
}

/// Whether it goes over a port. Containers do not see the host's interfaces over an Ethernet port, and use
/// them; InfiniBand without an interface has none that they could.
fn ip_over(link_layer: &str, interfaces: &[String], ip: &Ip) -> Option<bool> {
    let over: Vec<_> = interfaces.iter().map(|interface| ip.is_over(interface)).collect();
    let is_known = match over.is_empty() {
        true => link_layer == "InfiniBand",
        false => !over.contains(&None),
    };
    if over.contains(&Some(true)) { Some(true) } else { is_known.then_some(false) }
}

/// From "200 Gb/sec (4X HDR)".
fn rate_bytes_per_s(rate: &str) -> Option<u64> {
    let (gbit, _) = rate.split_once(" Gb/sec")?;
    let gbit: f64 = gbit.trim().parse().ok()?;
    (gbit.is_finite() && gbit > 0.0).then_some((gbit * 1e9 / 8.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        let table = [
            ("200 Gb/sec (4X HDR)", Some(25_000_000_000)),
            ("2.5 Gb/sec (1X SDR)", Some(312_500_000)),
            ("0 Gb/sec", None),
            ("-4 Gb/sec", None),
            ("NaN Gb/sec", None),
            ("fast", None),
            ("", None),
        ];
        for (rate, expected) in table {
            assert_eq!(rate_bytes_per_s(rate), expected, "{rate}");
        }
    }
}
