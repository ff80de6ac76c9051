//! What lies between two workers, and how long KV takes over it: what their hardware promises, and what
//! the reader measured.

use crate::v1::{Gpu, Hardware, KvLink, Nic, Place, TransferModel};

/// The name of the way within one process.
pub const WAY_LOCAL: &str = "local";

/// The name of the way over a TCP connection.
pub const WAY_TCP: &str = "tcp";

/// The name of the way over CUDA's copies between GPUs of one host.
pub const WAY_CUDA: &str = "cuda";

/// The name of the way over UCX, and with it RDMA.
pub const WAY_UCX: &str = "ucx";

/// What is assumed of one thread's copy in memory, and of a link of which nothing is known.
const MEMCPY_BYTES_PER_S: f32 = 10e9;

/// What is assumed of a copy within a GPU: it reads and writes the same memory.
const GPU_COPY_BYTES_PER_S: f32 = 1e12;

/// What one stream of TCP carries at most; it is bound by the CPU.
const TCP_BYTES_PER_S: f32 = 3e9;

/// Of what a link's own figures say, copies see about so much.
const LINK_SHARE: f32 = 0.8;

/// What a PCIe slot is assumed to carry that does not say: fourth generation, 16 lanes.
const PCIE_BYTES_PER_S: f32 = 31.5e9;

/// GPUs, their peers, and network cards that a worker may register; of more, the last are left out.
const DEVICES_MAX: usize = 64;

/// Ways that it may register.
const WAYS_MAX: usize = 16;

/// How long copies over one link take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TransferRate {
    /// Each of them.
    pub copy_us: f32,
    /// And for each byte.
    pub byte_us: f32,
}

impl TransferRate {
    /// A rate from what a link carries.
    pub fn new(copy_us: f32, bytes_per_s: f32) -> Self {
        Self { copy_us, byte_us: 1e6 / bytes_per_s.max(1.0) }
    }

    /// How long one copy takes, in microseconds.
    pub fn copy_bytes_us(&self, bytes: f32) -> f32 {
        self.copy_us + bytes * self.byte_us
    }

    /// The rate of a path over both.
    pub fn slower(self, other: Self) -> Self {
        Self { copy_us: self.copy_us.max(other.copy_us), byte_us: self.byte_us.max(other.byte_us) }
    }
}

impl TransferModel {
    /// Whether predictions can be made from it: nothing else may come from another process.
    pub fn is_sound(&self) -> bool {
        let Self { copy_us, mib_us, .. } = *self;
        [copy_us, mib_us].iter().all(|us| us.is_finite() && *us >= 0.0) && copy_us + mib_us > 0.0
    }

    /// The same as a rate.
    pub fn rate(&self) -> TransferRate {
        TransferRate { copy_us: self.copy_us, byte_us: self.mib_us / (1 << 20) as f32 }
    }
}

impl Place {
    /// Whether both are under one kernel.
    pub fn shares_host(&self, other: &Self) -> bool {
        !self.host_id.is_empty() && self.host_id == other.host_id
    }

    /// Whether both are one process's.
    pub fn shares_process(&self, other: &Self) -> bool {
        self.shares_host(other)
            && !self.process_id.is_empty()
            && self.process_id == other.process_id
    }
}

impl Hardware {
    /// The GPU that it computes with.
    pub fn gpu(&self) -> Option<&Gpu> {
        let place = self.place.as_ref()?;
        // Instances of a card have names of their own, and its address.
        self.gpus.iter().find(|gpu| {
            gpu.uuid == place.device
                || (!place.pci_bus_id.is_empty() && gpu.pci_bus_id == place.pci_bus_id)
        })
    }

    /// Leaves out what no host has as many of: it may come from another process.
    pub fn truncate(&mut self) {
        self.gpus.truncate(DEVICES_MAX);
        self.gpus.iter_mut().for_each(|gpu| gpu.peers.truncate(DEVICES_MAX));
        self.nics.truncate(DEVICES_MAX);
        self.kv_ways.truncate(WAYS_MAX);
    }

    fn has_way(&self, way: &str) -> bool {
        self.kv_ways.iter().any(|own| own == way)
    }

    /// What the fastest of some network cards carries.
    fn card_bytes_per_s(&self, is_one: impl Fn(&Nic) -> bool) -> Option<f32> {
        let cards = self.nics.iter().filter(|nic| is_one(nic)).map(|nic| nic.bytes_per_s as f32);
        cards.reduce(f32::max).filter(|speed| *speed > 0.0)
    }

    fn tcp_bytes_per_s(&self) -> Option<f32> {
        self.card_bytes_per_s(|nic| nic.ip != Some(false))
    }

    /// How fast KV gets to or from another host over TCP: as fast as the fastest card with IP, if that is
    /// known.
    pub fn network(&self) -> TransferRate {
        let card = self.tcp_bytes_per_s().unwrap_or(MEMCPY_BYTES_PER_S);
        TransferRate::new(200.0, (LINK_SHARE * card).min(TCP_BYTES_PER_S))
    }

    /// What that card lets through at most to readers of other hosts; no bound where that is not known.
    pub fn network_bound(&self) -> TransferRate {
        let card = self.tcp_bytes_per_s();
        card.map_or_else(TransferRate::default, |card| TransferRate::new(0.0, LINK_SHARE * card))
    }

    /// How fast it gets there by RDMA; none where it cannot.
    pub fn rdma(&self) -> Option<TransferRate> {
        let card = self.card_bytes_per_s(|nic| nic.rdma).filter(|_| self.has_way(WAY_UCX))?;
        Some(TransferRate::new(50.0, LINK_SHARE * card))
    }

    /// What decides how close it is as a source: `close` says the same of all that have the same.
    pub fn spot(&self) -> Self {
        let kv_ways = if self.has_way(WAY_CUDA) { vec![WAY_CUDA.to_string()] } else { Vec::new() };
        let place = self.place.clone().unwrap_or_default();
        let Some(own) = self.gpu() else {
            return Self { place: Some(place), kv_ways, ..Default::default() };
        };
        let gpu = Gpu {
            pci_bus_id: own.pci_bus_id.clone(),
            pcie_bytes_per_s: own.pcie_bytes_per_s,
            nvlink_switch_bytes_per_s: own.nvlink_switch_bytes_per_s,
            ..Default::default()
        };
        // Whichever process, or instance of the card, it is.
        let place = Place { host_id: place.host_id, ..Default::default() };
        Self { place: Some(place), gpus: vec![gpu], kv_ways, ..Default::default() }
    }
}

/// How fast KV moves between processes of one host that have no closer link.
pub fn within_host() -> TransferRate {
    TransferRate::new(100.0, TCP_BYTES_PER_S)
}

/// How fast it is assumed to move where nothing is known.
pub fn unknown() -> TransferRate {
    Hardware::default().network()
}

/// The link between a reader and a source that are closer than two processes of one host, and what their
/// hardware promises of it; none where they are not.
pub fn close(reader: &Hardware, source: &Hardware) -> Option<(KvLink, TransferRate)> {
    let (here, there) = (reader.place.as_ref()?, source.place.as_ref()?);
    if let Some(theirs) = source.gpu() {
        let reach_each_other = reader.has_way(WAY_CUDA) && source.has_way(WAY_CUDA);
        let ours = reader.gpu().filter(|_| here.shares_host(there) && reach_each_other)?;
        return Some(between_gpus(ours, theirs));
    }
    let rate = TransferRate::new(10.0, MEMCPY_BYTES_PER_S);
    here.shares_process(there).then_some((KvLink::Process, rate))
}

/// What copies by a way go over, as far as the reader can tell of a source that lies `there` and has RDMA or
/// not (`rdma_there`).
pub fn over(
    way: &str,
    reader: Option<&Hardware>,
    there: Option<&Place>,
    rdma_there: Option<bool>,
) -> KvLink {
    let here = reader.and_then(|reader| reader.place.as_ref());
    let shares_host = here.zip(there).is_some_and(|(here, there)| here.shares_host(there));
    match way {
        WAY_LOCAL => KvLink::Process,
        // It may be on this host, or on another one.
        _ if there.is_none() => KvLink::Unspecified,
        WAY_CUDA => over_cuda(reader, there),
        _ if shares_host => KvLink::Host,
        WAY_UCX if reader.is_some_and(|reader| reader.rdma().is_some()) => match rdma_there {
            Some(true) => KvLink::Rdma,
            Some(false) => KvLink::Network,
            None => KvLink::Unspecified,
        },
        _ => KvLink::Network,
    }
}

/// Of the source it knows where it is, and not what links it has: behind a switch, it has them too.
fn over_cuda(reader: Option<&Hardware>, there: Option<&Place>) -> KvLink {
    let Some((ours, there)) = reader.and_then(Hardware::gpu).zip(there) else {
        return KvLink::Pcie;
    };
    if ours.pci_bus_id == there.pci_bus_id {
        return KvLink::Gpu;
    }
    let peer = ours.peers.iter().find(|peer| peer.pci_bus_id == there.pci_bus_id);
    let is_linked =
        ours.nvlink_switch_bytes_per_s > 0 || peer.is_some_and(|peer| peer.nvlink_bytes_per_s > 0);
    if is_linked { KvLink::Nvlink } else { KvLink::Pcie }
}

fn between_gpus(ours: &Gpu, theirs: &Gpu) -> (KvLink, TransferRate) {
    if ours.pci_bus_id == theirs.pci_bus_id {
        return (KvLink::Gpu, TransferRate::new(20.0, GPU_COPY_BYTES_PER_S));
    }
    let peer = ours.peers.iter().find(|peer| peer.pci_bus_id == theirs.pci_bus_id);
    let direct = peer.map_or(0, |peer| peer.nvlink_bytes_per_s);
    let switched = ours.nvlink_switch_bytes_per_s.min(theirs.nvlink_switch_bytes_per_s);
    let nvlink = direct.max(switched) as f32;
    if nvlink > 0.0 {
        return (KvLink::Nvlink, TransferRate::new(20.0, LINK_SHARE * nvlink));
    }
    let slot = |gpu: &Gpu| match gpu.pcie_bytes_per_s {
        0 => PCIE_BYTES_PER_S,
        known => known as f32,
    };
    let pcie = slot(ours).min(slot(theirs));
    (KvLink::Pcie, TransferRate::new(30.0, LINK_SHARE * pcie))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::GpuPeer;

    const GB: u64 = 1_000_000_000;

    fn cpu(host: u8, process: u8) -> Hardware {
        let place = Place {
            host_id: vec![host; 16].into(),
            process_id: vec![process; 16].into(),
            device: "cpu".into(),
            ..Default::default()
        };
        Hardware { place: Some(place), kv_ways: vec!["tcp".into()], ..Default::default() }
    }

    /// The worker of a GPU; `peers` are linked to it by 100 GB/s, and 3f:… by PCIe alone.
    fn gpu(host: u8, process: u8, bus: &str, peers: &[&str], switch: u64) -> Hardware {
        let mut hardware = cpu(host, process);
        let place = hardware.place.as_mut().unwrap();
        (place.device, place.pci_bus_id) = (format!("GPU-{bus}"), bus.into());
        let peer = |bus: &&str| GpuPeer {
            pci_bus_id: bus.to_string(),
            nvlink_bytes_per_s: 100 * GB,
            ..Default::default()
        };
        hardware.gpus = vec![Gpu {
            uuid: format!("GPU-{bus}"),
            pci_bus_id: bus.into(),
            pcie_bytes_per_s: 64 * GB,
            nvlink_switch_bytes_per_s: switch,
            peers: peers.iter().map(peer).collect(),
            ..Default::default()
        }];
        hardware.kv_ways.push(WAY_CUDA.into());
        hardware
    }

    #[test]
    fn what_lies_between_two_workers() {
        let link = |a: &Hardware, b: &Hardware| close(a, b).map(|(link, _)| link);
        let here = gpu(1, 1, "3b", &["3c"], 0);
        let table = [
            (cpu(1, 1), cpu(1, 1), Some(KvLink::Process)),
            (cpu(1, 1), cpu(1, 2), None),
            (cpu(1, 1), cpu(2, 1), None),
            (here.clone(), gpu(1, 2, "3b", &[], 0), Some(KvLink::Gpu)),
            (here.clone(), gpu(1, 2, "3c", &["3b"], 0), Some(KvLink::Nvlink)),
            (here.clone(), gpu(1, 2, "3f", &[], 0), Some(KvLink::Pcie)),
            (here.clone(), gpu(2, 2, "3c", &["3b"], 0), None),
            (here.clone(), cpu(1, 2), None),
            (gpu(1, 1, "3b", &[], 450 * GB), gpu(1, 2, "5d", &[], 450 * GB), Some(KvLink::Nvlink)),
            (gpu(1, 1, "3b", &[], 450 * GB), gpu(1, 2, "5d", &[], 0), Some(KvLink::Pcie)),
        ];
        for (reader, source, expected) in table {
            assert_eq!(link(&reader, &source), expected, "{reader:?} {source:?}");
            assert_eq!(close(&reader, &source.spot()), close(&reader, &source), "{source:?}");
        }
        assert_eq!(gpu(1, 1, "3b", &["3c"], 0).spot(), gpu(1, 2, "3b", &[], 0).spot());
        assert_ne!(cpu(1, 1).spot(), cpu(1, 2).spot());
        let without_cuda = Hardware { kv_ways: vec!["tcp".into()], ..here.clone() };
        assert_eq!(link(&here, &without_cuda), None, "it could not be read that way");
        let nowhere = Hardware { place: Some(Place::default()), ..cpu(1, 1) };
        assert_eq!(link(&nowhere, &nowhere), None, "an unknown host is no host");
    }

    #[test]
    fn a_reader_knows_what_its_copies_go_over() {
        let check = |way: &str, reader: &Hardware, source: &Hardware, expected: KvLink| {
            let rdma_there = Some(source.rdma().is_some());
            let found = over(way, Some(reader), source.place.as_ref(), rdma_there);
            assert_eq!(found, expected, "{way} {reader:?} {source:?}");
        };
        check(WAY_LOCAL, &cpu(1, 1), &cpu(1, 1), KvLink::Process);
        check("tcp", &cpu(1, 1), &cpu(1, 2), KvLink::Host);
        check("tcp", &cpu(1, 1), &cpu(2, 2), KvLink::Network);
        check(WAY_UCX, &cpu(1, 1), &cpu(1, 2), KvLink::Host);
        check(WAY_UCX, &cpu(1, 1), &cpu(2, 2), KvLink::Network);
        let nics = vec![Nic { bytes_per_s: GB, rdma: true, ..Default::default() }];
        let ways = vec!["tcp".into(), WAY_UCX.into()];
        let by_rdma = |host| Hardware { nics: nics.clone(), kv_ways: ways.clone(), ..cpu(host, 1) };
        check(WAY_UCX, &by_rdma(1), &by_rdma(2), KvLink::Rdma);
        check(WAY_UCX, &by_rdma(1), &cpu(2, 2), KvLink::Network);
        check(WAY_UCX, &cpu(1, 1), &by_rdma(2), KvLink::Network);
        let of_unknown =
            |reader: &Hardware| over(WAY_UCX, Some(reader), cpu(2, 2).place.as_ref(), None);
        assert_eq!(of_unknown(&by_rdma(1)), KvLink::Unspecified, "a source that does not say");
        assert_eq!(of_unknown(&cpu(1, 1)), KvLink::Network);
        let linked = gpu(1, 1, "3b", &["3c"], 0);
        check(WAY_CUDA, &linked, &gpu(1, 2, "3b", &[], 0), KvLink::Gpu);
        check(WAY_CUDA, &linked, &gpu(1, 2, "3c", &["3b"], 0), KvLink::Nvlink);
        check(WAY_CUDA, &linked, &gpu(1, 2, "3f", &[], 0), KvLink::Pcie);
        check(WAY_CUDA, &gpu(1, 1, "3b", &[], 9), &gpu(1, 2, "3f", &[], 9), KvLink::Nvlink);
        check("tcp", &Hardware::default(), &cpu(1, 1), KvLink::Network);
        check("tcp", &cpu(1, 1), &Hardware::default(), KvLink::Unspecified);
        assert_eq!(over("tcp", None, cpu(1, 1).place.as_ref(), None), KvLink::Network);
        assert_eq!(over(WAY_CUDA, None, cpu(1, 1).place.as_ref(), None), KvLink::Pcie);
    }

    #[test]
    fn closer_links_are_faster() {
        let ms = |rate: TransferRate| rate.copy_bytes_us(1e9) / 1000.0;
        let between = |bus, peers: &[&str]| {
            ms(close(&gpu(1, 1, "3b", peers, 0), &gpu(1, 2, bus, &[], 0)).unwrap().1)
        };
        let nic = |gbit: u64, rdma| Nic { bytes_per_s: gbit * GB / 8, rdma, ..Default::default() };
        let with_nics = |nics: &[Nic], ways: &[&str]| Hardware {
            nics: nics.to_vec(),
            kv_ways: ways.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let rdma = with_nics(&[nic(10, false), nic(400, true)], &["tcp", WAY_UCX]);
        let slow = with_nics(&[nic(1, false), nic(10, false)], &["tcp"]);
        let times = [
            between("3b", &[]),
            between("3c", &["3c"]),
            between("3c", &[]),
            ms(rdma.rdma().unwrap()),
            ms(within_host()),
            ms(slow.network()),
        ];
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert_eq!(slow.rdma(), None);
        assert_eq!(with_nics(&[nic(400, true)], &["tcp"]).rdma(), None, "it cannot use the card");
        assert!((ms(slow.network()) - 1000.2).abs() < 1.0, "10 Gbit/s, of which 0.8 are seen");
        assert_eq!(rdma.network(), within_host().slower(rdma.network()), "TCP is bound by the CPU");
        let with_ip = |gbit, rdma, ip| Nic { ip, ..nic(gbit, rdma) };
        let apart = [with_ip(400, true, Some(false)), with_ip(10, false, Some(true))];
        let apart = with_nics(&apart, &["tcp", WAY_UCX]);
        assert_eq!(apart.network(), slow.network(), "TCP does not go over the fast one");
        assert_eq!((apart.network_bound(), apart.rdma()), (slow.network_bound(), rdma.rdma()));
        let hidden = with_nics(&[with_ip(400, true, Some(false))], &["tcp"]);
        let nothing_known = Hardware::default();
        assert_eq!(hidden.network(), nothing_known.network(), "by a card that is not seen");
        assert_eq!(hidden.network_bound(), nothing_known.network_bound());
    }

    #[test]
    fn what_makes_no_sense_is_no_model() {
        let model = |copy_us, mib_us| TransferModel { copy_us, mib_us, ..Default::default() };
        for (copy_us, mib_us) in [(f32::NAN, 1.0), (1.0, f32::INFINITY), (-1.0, 1.0), (0.0, 0.0)] {
            assert!(!model(copy_us, mib_us).is_sound(), "{copy_us} {mib_us}");
        }
        assert!(model(0.0, 50.0).is_sound());
        let rate = model(10.0, 100.0).rate();
        assert_eq!(rate.copy_bytes_us((4 << 20) as f32), 410.0);
    }
}
