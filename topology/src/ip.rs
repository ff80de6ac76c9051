//! Which network interfaces IP goes over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::host::{names, text};

/// As the kernel writes it, of IPv6 addresses that whatever is up has by itself.
const SCOPE_LINK: &str = "20";

/// The interfaces that this process sees, as far as IP goes over them.
pub struct Ip {
    interfaces: PathBuf,
    /// Those with IPv4 routes or IPv6 addresses; absent where the kernel does not tell.
    with_ip: Option<BTreeSet<String>>,
}

impl Ip {
    /// Reads what there is below `root`.
    pub fn read(root: &Path) -> Self {
        let interfaces = root.join("sys/class/net");
        let with_ip = text(&root.join("proc/net/route")).map(|routes| {
            let addresses = text(&root.join("proc/net/if_inet6")).unwrap_or_default();
            let with_route = routes.lines().skip(1).filter_map(|route| field(route, 0));
            let global = addresses.lines().filter(|line| field(line, 3) != Some(SCOPE_LINK));
            let with_address = global.filter_map(|address| field(address, 5));
            with_route.chain(with_address).map(str::to_string).collect()
        });
        Self { interfaces, with_ip }
    }

    /// Whether it goes over this one, or what lies above it: a bond, a bridge, a VLAN. None where that
    /// cannot be told: what lies above may have its addresses where nobody sees them, as those of a
    /// container's or of Open vSwitch.
    pub fn is_over(&self, interface: &str) -> Option<bool> {
        let with_ip = self.with_ip.as_ref()?;
        let (mut seen, mut unseen) = (BTreeSet::new(), vec![interface.to_string()]);
        while let Some(name) = unseen.pop() {
            if with_ip.contains(&name) {
                return Some(true);
            }
            if !seen.contains(&name) {
                unseen.extend(self.above(&name));
                seen.insert(name);
            }
        }
        (seen.len() == 1).then_some(false)
    }

    fn above(&self, interface: &str) -> Vec<String> {
        let entries = names(&self.interfaces.join(interface));
        entries.iter().filter_map(|entry| Some(entry.strip_prefix("upper_")?.to_string())).collect()
    }
}

fn field(line: &str, number: usize) -> Option<&str> {
    line.split_whitespace().nth(number)
}
