//! GPUs by a driver that is made up.

use std::time::Duration;

use topology::{Driver, Links, Monitor, Topology};

use crate::fake::Fake;

const GIB: u64 = 1 << 30;

#[track_caller]
fn check_notes(topology: &Topology, expected: &[&str]) {
    let notes = &topology.notes;
    assert_eq!(notes.len(), expected.len(), "{notes:#?}");
    for (note, part) in notes.iter().zip(expected) {
        assert!(note.contains(part), "{note:?} does not say {part:?}");
    }
}

#[test]
fn two_gpus_with_nvlinks() {
    let host = Fake::new("two-gpus")
        .file("sys/bus/pci/devices/0000:3b:00.0/numa_node", "1\n")
        .file("sys/bus/pci/devices/0000:3c:00.0/numa_node", "-1\n")
        .driver(&[]);
    let topology = Topology::read(&host.source());
    check_notes(&topology, &[]);
    assert_eq!(topology.driver_version.as_deref(), Some("580.95.05"));
    let [first, second] = &topology.gpus[..] else { panic!("{:#?}", topology.gpus) };
    assert_eq!((&*first.uuid, &*first.name), ("GPU-fake-0", "NVIDIA H100 80GB HBM3"));
    assert_eq!(first.compute_capability, Some((9, 0)));
    assert_eq!((first.memory_bytes, first.memory_used_bytes), (Some(80 * GIB), Some(3 * GIB)));
    assert_eq!(first.pci_bus_id, "0000:3b:00.0");
    assert_eq!((first.numa_node, second.numa_node), (Some(1), None));
    let pcie = first.pcie.unwrap();
    assert_eq!((pcie.generation, pcie.lanes, pcie.bytes_per_s), (5, 16, 16 * 3_938_400_000));
    assert_eq!(first.nvlinks.as_ref().unwrap().version, 6);
    let [peer] = &first.peers[..] else { panic!("{:#?}", first.peers) };
    assert_eq!((peer.index, &*peer.pci_bus_id, peer.path), (1, "0000:3c:00.0", Some("one switch")));
    assert_eq!(peer.nvlink, Links { count: 4, bytes_per_s: 4 * 26_562_000_000 });
    assert!(!first.mig && first.instances.is_empty());
}

#[test]
fn eight_gpus_behind_switches_reach_each_other() {
    let host = Fake::new("switched").driver(&["GPUS=8", "SWITCHED"]);
    let topology = Topology::read(&host.source());
    check_notes(&topology, &[]);
    for gpu in &topology.gpus {
        assert_eq!(gpu.peers.len(), 7);
        let all = Links { count: 18, bytes_per_s: 18 * 26_562_000_000 };
        assert!(gpu.peers.iter().all(|peer| peer.nvlink == all), "{:?}", gpu.peers);
    }
    let paths: Vec<_> = topology.gpus[0].peers.iter().filter_map(|peer| peer.path).collect();
    assert_eq!(paths, [["one switch"; 3].as_slice(), &["another socket"; 4]].concat());
}

#[test]
fn a_divided_gpu_shows_its_instances() {
    let host = Fake::new("mig").driver(&["MIG"]);
    let topology = Topology::read(&host.source());
    check_notes(&topology, &[]);
    let [divided, whole] = &topology.gpus[..] else { panic!("{:#?}", topology.gpus) };
    assert!(divided.mig && !whole.mig);
    let instances: Vec<_> =
        divided.instances.iter().map(|found| (&*found.uuid, found.memory_bytes)).collect();
    assert_eq!(instances, [("MIG-fake-1", Some(40 * GIB)), ("MIG-fake-2", Some(40 * GIB))]);
    let samples = Driver::open(&host.source()).unwrap().sample();
    assert_eq!(samples[0].utilization, None, "the driver does not tell it of divided GPUs");
    assert_eq!(samples[0].memory_used_bytes, Some((3 * GIB) as f64));
}

#[test]
fn an_old_driver_tells_less() {
    let host = Fake::new("old").driver(&["OLD_DRIVER"]);
    let topology = Topology::read(&host.source());
    let what = ["whether it is divided", "its NVLinks"];
    let ways = ["GPU 0: its way to GPU 1", "GPU 1: its way to GPU 0"];
    check_notes(&topology, &[what, what, ways].concat());
    assert!(topology.notes.iter().all(|note| note.ends_with("too old to tell; update it")));
    let [first, _] = &topology.gpus[..] else { panic!("{:#?}", topology.gpus) };
    assert_eq!(first.memory_bytes, Some(80 * GIB), "by the first version of the question");
    assert_eq!((first.peers[0].path, first.peers[0].nvlink), (None, Links::default()));
    let sample = Driver::open(&host.source()).unwrap().sample().remove(0);
    assert_eq!((sample.temperature_celsius, sample.pcie_sent_bytes_per_s), (Some(41.0), None));
}

#[test]
fn gpus_that_cannot_be_used_are_left_out() {
    let table = [
        ("LOST=1", "GPU 1 fell off its bus and is left out; restart the machine"),
        ("FORBIDDEN=1", "GPU 1 is left out: this user may not use it; give it access to"),
    ];
    for (define, note) in table {
        let host = Fake::new(define).driver(&["GPUS=3", define]);
        let topology = Topology::read(&host.source());
        check_notes(&topology, &[note]);
        let indices: Vec<u32> = topology.gpus.iter().map(|gpu| gpu.index).collect();
        assert_eq!(indices, [0, 2]);
        assert_eq!(Driver::open(&host.source()).unwrap().sample().len(), 2);
    }
}

#[test]
fn no_gpu_is_an_answer_with_a_reason() {
    let table: [(&str, &[&str], &str); 7] = [
        ("not-loaded", &["INIT_RESULT=9"], "its kernel module is not loaded; modprobe nvidia"),
        ("mismatch", &["INIT_RESULT=18"], "are of different versions; restart the machine"),
        ("forbidden", &["INIT_RESULT=4"], "this user may not use the NVIDIA driver"),
        ("unknown", &["INIT_RESULT=999"], "the NVIDIA driver fails (an internal driver error"),
        ("later", &["INIT_RESULT=4711"], "the NVIDIA driver fails (unexpected enum variant"),
        ("none", &["GPUS=0"], "the NVIDIA driver is there, and finds none"),
        ("half", &["NO_SHUTDOWN"], "too old for Stator (it has no nvmlShutdown); update it"),
    ];
    let check = |host: &Fake, expected: &str| {
        let topology = Topology::read(&host.source());
        check_notes(&topology, &[expected]);
        assert!(topology.notes[0].starts_with("no GPU: "), "{:?}", topology.notes);
        assert!(topology.gpus.is_empty() && topology.driver_version.is_none());
    };
    for (name, defines, expected) in table {
        check(&Fake::new(name).driver(defines), expected);
    }
    check(&Fake::new("absent"), "there is no NVIDIA driver here (libnvidia-ml.so.1)");
    check(&Fake::new("text").file("libnvidia-ml.so.1", "no library"), "there is no NVIDIA driver");
}

#[test]
fn answers_without_sense_are_no_answers() {
    let host = Fake::new("strange").driver(&["STRANGE"]);
    let topology = Topology::read(&host.source());
    let [first, _] = &topology.gpus[..] else { panic!("{:#?}", topology.gpus) };
    assert_eq!((&*first.name, first.compute_capability), ("", None));
    assert_eq!(first.pcie.map(|pcie| pcie.bytes_per_s), Some(0));
    let links = first.peers[0].nvlink;
    assert_eq!(links.bytes_per_s, 4 * 25_000_000_000, "by their version");
    let unknown = ["its name", "its name", "its way to GPU 1", "its way to GPU 0"];
    check_notes(&topology, &unknown);
    assert_eq!(Driver::open(&host.source()).unwrap().sample()[0].nvlink_sent_bytes, None);
}

#[test]
fn a_sample_has_what_there_is_to_tell() {
    let host = Fake::new("sample").driver(&[]);
    let samples = Driver::open(&host.source()).unwrap().sample();
    let [first, second] = &samples[..] else { panic!("{samples:#?}") };
    assert_eq!((first.utilization, second.utilization), (Some(0.75), Some(0.74)));
    assert_eq!((first.temperature_celsius, first.power_watts), (Some(41.0), Some(123.5)));
    let pcie = (first.pcie_sent_bytes_per_s, first.pcie_received_bytes_per_s);
    assert_eq!(pcie, (Some(1e6), Some(2e6)));
    let nvlink = (first.nvlink_sent_bytes, first.nvlink_received_bytes);
    assert_eq!(nvlink, (Some(4096.0 * 1024.0), Some(8192.0 * 1024.0)));

    let bare = Fake::new("no-sensors").driver(&["NO_SENSORS", "NO_NVLINK"]);
    let sample = Driver::open(&bare.source()).unwrap().sample().remove(0);
    assert_eq!((sample.utilization, sample.power_watts), (None, None));
    assert_eq!((sample.nvlink_sent_bytes, sample.memory_bytes), (None, Some((80 * GIB) as f64)));
    let topology = Topology::read(&bare.source());
    check_notes(&topology, &[]);
    assert_eq!((topology.gpus[0].pcie, topology.gpus[0].nvlinks.clone()), (None, None));
}

#[test]
fn a_monitor_has_a_sample_from_the_start() {
    let host = Fake::new("monitor").driver(&[]);
    let driver = Driver::open(&host.source()).unwrap();
    let monitor = Monitor::start(driver, Duration::from_secs(3600)).unwrap();
    assert_eq!(monitor.latest().len(), 2);
}
