//! The host by files that are made up.

use topology::{Nic, NumaNode, RdmaPort, Topology};

use crate::fake::Fake;

#[test]
fn a_host_with_everything() {
    let host = Fake::new("everything")
        .file("proc/sys/kernel/random/boot_id", "0b8f4d54-2c5c-4a0f-9d4c-1f0e1c6c9b11\n")
        .file("sys/devices/system/cpu/online", "0-63\n")
        .file("sys/devices/system/node/node0/cpulist", "0-31\n")
        .file("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       1024 kB\nNode 0 …\n")
        .file("sys/devices/system/node/node1/cpulist", "32-63\n")
        .file("sys/devices/system/node/possible", "0-1\n")
        .file("sys/class/net/eth0/speed", "25000\n")
        .file("sys/class/net/eth0/operstate", "up\n")
        .file("sys/class/net/eth0/device/numa_node", "0\n")
        .file("sys/class/net/eth1/speed", "-1\n")
        .file("sys/class/net/eth1/operstate", "down\n")
        .file("sys/class/net/eth1/device/numa_node", "1\n")
        .file("sys/class/net/bond0/speed", "50000\n")
        .file("sys/class/net/bond0/operstate", "up\n")
        .file("sys/class/net/bond0/bonding/mode", "802.3ad 4\n")
        .file("sys/class/net/veth1/speed", "10000\n")
        .file("sys/class/net/veth1/operstate", "up\n")
        .file("sys/class/net/lo/operstate", "unknown\n")
        .file("sys/class/infiniband/mlx5_0/device/numa_node", "1\n")
        .file("sys/class/infiniband/mlx5_0/device/net/eth1/mtu", "9000\n")
        .file("sys/class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n")
        .file("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n")
        .file("sys/class/infiniband/mlx5_0/ports/1/link_layer", "InfiniBand\n")
        .file("sys/class/infiniband/mlx5_0/ports/2/state", "1: DOWN\n");
    let found = Topology::read(&host.source()).host;
    assert_eq!(found.cpus, 64);
    let nodes = [
        NumaNode { node: 0, cpus: "0-31".into(), memory_bytes: Some(1024 * 1024) },
        NumaNode { node: 1, cpus: "32-63".into(), memory_bytes: None },
    ];
    assert_eq!(found.numa_nodes, nodes);
    let nic = |name: &str, is_up, bytes_per_s, numa_node| Nic {
        name: name.into(),
        is_up,
        bytes_per_s,
        numa_node,
        ip: None,
    };
    let nics = [
        nic("bond0", true, Some(6_250_000_000), None),
        nic("eth0", true, Some(3_125_000_000), Some(0)),
        nic("eth1", false, None, Some(1)),
    ];
    assert_eq!(found.nics, nics);
    let port = |port, is_up, bytes_per_s, link_layer: &str| RdmaPort {
        device: "mlx5_0".into(),
        port,
        is_up,
        link_layer: link_layer.into(),
        bytes_per_s,
        numa_node: Some(1),
        interfaces: vec!["eth1".into()],
        ip: None,
    };
    let active = port(1, true, Some(50_000_000_000), "InfiniBand");
    assert_eq!(found.rdma_ports, [active, port(2, false, None, "")]);
}

#[test]
fn ip_goes_over_some_cards_and_ports() {
    let mut host = Fake::new("ip")
        .file(
            "proc/net/route",
            "Iface\tDestination\tGateway \tFlags\n\
             bond0\t00000000\t0100000A\t0003\n\
             bond0\t0000000A\t00000000\t0001\n\
             eth2.7\t0000010A\t00000000\t0001\n\
             ib1\t0000020A\t00000000\t0001\n\
             *\t0000030A\t00000000\t0200\n",
        )
        .file(
            "proc/net/if_inet6",
            "fe800000000000000000000000000001 02 40 20 80     eth1\n\
             20010db8000000000000000000000001 03 40 00 80     eth3\n",
        )
        .file("sys/class/net/bond0/bonding/mode", "802.3ad 4\n")
        .file("sys/class/net/eth0/upper_bond0/mtu", "1500\n")
        .file("sys/class/net/eth2/upper_eth2.7/mtu", "1500\n")
        .file("sys/class/net/eth4/upper_ovs-system/mtu", "1500\n")
        .file("sys/class/infiniband/mlx5_0/device/net/ib0/mtu", "4092\n")
        .file("sys/class/infiniband/mlx5_1/device/net/ib1/mtu", "4092\n")
        .file("sys/class/infiniband/mlx5_3/device/net/eth4/mtu", "4092\n");
    for nic in ["eth0", "eth1", "eth2", "eth3", "eth4", "ib0", "ib1"] {
        host = host.file(&format!("sys/class/net/{nic}/device/vendor"), "0x15b3\n");
    }
    let layers = ["InfiniBand", "InfiniBand", "InfiniBand", "Ethernet", "Ethernet"];
    for (device, layer) in layers.into_iter().enumerate() {
        let layer_file = format!("sys/class/infiniband/mlx5_{device}/ports/1/link_layer");
        host = host.file(&layer_file, layer);
    }
    let found = Topology::read(&host.source()).host;
    let nics: Vec<_> = found.nics.iter().map(|nic| (&*nic.name, nic.ip)).collect();
    let expected = [
        ("bond0", Some(true)),
        ("eth0", Some(true)),
        ("eth1", Some(false)),
        ("eth2", Some(true)),
        ("eth3", Some(true)),
        ("eth4", None),
        ("ib0", Some(false)),
        ("ib1", Some(true)),
    ];
    assert_eq!(nics, expected);
    let ports: Vec<_> = found.rdma_ports.iter().map(|port| (&*port.device, port.ip)).collect();
    let expected = [
        ("mlx5_0", Some(false)),
        ("mlx5_1", Some(true)),
        ("mlx5_2", Some(false)),
        ("mlx5_3", None),
        ("mlx5_4", None),
    ];
    assert_eq!(ports, expected);
}

#[test]
fn a_host_that_says_nothing() {
    let found = Topology::read(&Fake::new("nothing").source()).host;
    assert_eq!(found.id, "");
    assert!(found.cpus >= 1, "those that this process may use");
    assert!(found.numa_nodes.is_empty() && found.nics.is_empty() && found.rdma_ports.is_empty());
}

#[test]
fn hosts_are_told_apart_by_their_boot() {
    let id = |name: &str, boot: &str| {
        let host = Fake::new(name).file("proc/sys/kernel/random/boot_id", boot);
        Topology::read(&host.source()).host.id
    };
    let (one, same, other) =
        (id("boot-1", "aa-1\n"), id("boot-2", "aa-1\n"), id("boot-3", "aa-2\n"));
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert!(!one.contains("aa"), "it tells nothing of the kernel's own");
}
