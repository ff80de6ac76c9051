//! What workers register of their hardware.

use topology::{Device, Topology};

use crate::fake::Fake;

fn host(name: &str, defines: &[&str]) -> Fake {
    Fake::new(name)
        .file("proc/sys/kernel/random/boot_id", "boot\n")
        .file("sys/bus/pci/devices/0000:3c:00.0/numa_node", "1\n")
        .file("sys/class/net/eth0/speed", "100000\n")
        .file("sys/class/net/eth0/operstate", "up\n")
        .file("sys/class/net/eth0/device/numa_node", "0\n")
        .file("sys/class/net/eth1/speed", "10000\n")
        .file("sys/class/net/eth1/operstate", "up\n")
        .file("sys/class/net/eth1/device/numa_node", "0\n")
        .file("proc/net/route", "Iface\tDestination\neth1\t00000000\n")
        .file("sys/class/net/eth2/operstate", "down\n")
        .file("sys/class/net/eth2/device/numa_node", "0\n")
        .file("sys/class/infiniband/mlx5_0/device/net/eth0/mtu", "9000\n")
        .file("sys/class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (4X EDR)\n")
        .file("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n")
        .driver(defines)
}

#[test]
fn a_worker_of_a_gpu_says_which_and_what_it_reaches() {
    let host = host("register", &[]);
    let topology = Topology::read(&host.source());
    let device = Device::Gpu("GPU-fake-1".into());
    let hardware = topology.hardware(&host.source(), &device, &["tcp", "cuda"]);
    let place = hardware.place.as_ref().unwrap();
    assert_eq!((place.host_id.len(), &*place.device), (16, "GPU-fake-1"));
    assert_eq!((&*place.pci_bus_id, hardware.numa_node), ("0000:3c:00.0", Some(1)));
    assert_eq!(hardware.kv_ways, ["tcp", "cuda"]);
    let gpu = hardware.gpu().unwrap();
    assert_eq!((gpu.compute_capability_major, gpu.memory_bytes), (9, 80 << 30));
    assert_eq!(gpu.peers[0].nvlink_bytes_per_s, 4 * 26_562_000_000);
    let nics: Vec<_> =
        hardware.nics.iter().map(|nic| (&*nic.name, nic.bytes_per_s, nic.rdma, nic.ip)).collect();
    let expected =
        [("mlx5_0", 12_500_000_000, true, Some(false)), ("eth1", 1_250_000_000, false, Some(true))];
    assert_eq!(nics, expected);
}

#[test]
fn a_worker_of_the_cpu_has_no_gpu_and_knows_of_them() {
    let host = host("register-cpu", &[]);
    let hardware = Topology::read(&host.source()).hardware(&host.source(), &Device::Cpu, &["tcp"]);
    assert_eq!(hardware.place.as_ref().unwrap().device, "cpu");
    assert_eq!((hardware.gpu(), hardware.gpus.len(), hardware.numa_node), (None, 2, None));
}

#[test]
fn a_worker_of_an_instance_is_at_its_card() {
    let host = host("register-mig", &["MIG"]);
    let device = Device::Gpu("MIG-fake-2".into());
    let hardware = Topology::read(&host.source()).hardware(&host.source(), &device, &["cuda"]);
    let place = hardware.place.as_ref().unwrap();
    assert_eq!((&*place.device, &*place.pci_bus_id), ("MIG-fake-2", "0000:3b:00.0"));
    assert_eq!(hardware.gpu().unwrap().uuid, "GPU-fake-0");
}

#[test]
fn a_topology_is_written_as_json() {
    let host = host("json", &["MIG"]);
    let json = serde_json::to_value(Topology::read(&host.source())).unwrap();
    assert_eq!(json["gpus"][0]["uuid"], "GPU-fake-0");
    assert_eq!(json["gpus"][0]["instances"][1]["uuid"], "MIG-fake-2");
    assert_eq!(json["host"]["nics"][0]["bytes_per_s"], 12_500_000_000u64);
}
