//! How where workers are changes whom a request goes to.

use protocol::v1::{Gpu, GpuPeer, Hardware, KvLink, Nic, Place, TransferModel};

use super::*;
use crate::cost::{self, Cost};
use crate::pair::{Half, Pairs};

const GB: u64 = 1_000_000_000;

/// An 8B model's KV: 128 KiB per token.
const LARGE_BLOCK: u32 = 16 * (128 << 10);

/// A worker of the CPU of some host with a network card of so many Gbit/s.
fn at_cpu(host: &str, process: &str, gbit: u64, worker: Worker) -> Worker {
    let id = |name: &str| name.as_bytes().to_vec().into();
    let place = Place {
        host_id: id(host),
        process_id: id(process),
        device: "cpu".into(),
        ..Default::default()
    };
    let nic = Nic { bytes_per_s: gbit * GB / 8, rdma: true, ..Default::default() };
    let hardware = Hardware {
        place: Some(place),
        nics: vec![nic],
        kv_ways: vec!["tcp".into()],
        ..Default::default()
    };
    Worker { block_bytes: LARGE_BLOCK, hardware: Some(hardware), ..worker }
}

/// A worker of a GPU, which is linked to some others of its host by 200 GB/s. It computes a token in 10 us.
fn at_gpu(host: &str, bus: &str, linked: &[&str], worker: Worker) -> Worker {
    let mut worker = at_cpu(host, worker.name, 100, worker);
    let hardware = worker.hardware.as_mut().unwrap();
    let place = hardware.place.as_mut().unwrap();
    (place.device, place.pci_bus_id) = (format!("GPU-{bus}"), bus.into());
    let peer = |bus: &&str| GpuPeer {
        pci_bus_id: bus.to_string(),
        nvlink_bytes_per_s: 200 * GB,
        ..Default::default()
    };
    hardware.gpus.push(Gpu {
        uuid: format!("GPU-{bus}"),
        pci_bus_id: bus.into(),
        pcie_bytes_per_s: 32 * GB,
        peers: linked.iter().map(peer).collect(),
        ..Default::default()
    });
    hardware.kv_ways.push("cuda".into());
    Worker { us_per_token: 10.0, running: if worker.prefill { 0 } else { 9 }, ..worker }
}

fn asking(tokens: usize) -> Question {
    Question { prompt_tokens: tokens, prompt_blocks: vec![("n".into(), Vec::new())], ..question() }
}

/// A decode worker, a prefill worker linked to it, and an equal one on another host. The first of these
/// has so many prompt tokens waiting.
fn linked_and_far(waiting_tokens: u64) -> [Worker; 3] {
    let linked = Worker { waiting_tokens, ..prefill("p") };
    [
        at_gpu("a", "3b", &["3c"], decode("d")),
        at_gpu("a", "3c", &["3b"], linked),
        at_gpu("b", "3b", &[], prefill("q")),
    ]
}

#[test]
fn nvlink_wins_where_much_moves() {
    let table: [(u64, usize, &str); 5] = [
        (0, 1600, "d<-p"),
        (0, 100, "d<-p"),
        (1_000, 8_000, "d<-p"),
        (1_000, 100, "d<-q"),
        (100_000, 8_000, "d<-q"),
    ];
    for (waiting, tokens, expected) in table {
        check_question(&linked_and_far(waiting), &asking(tokens), expected);
        // Whatever their names and order.
        let mut turned = linked_and_far(waiting);
        turned.swap(1, 2);
        (turned[1].name, turned[2].name) = ("a", "z");
        let expected = if expected == "d<-p" { "d<-z" } else { "d<-a" };
        check_question(&turned, &asking(tokens), expected);
    }
}

#[test]
fn the_decode_worker_next_to_the_prefill_worker_wins() {
    let workers = [
        at_gpu("b", "3b", &[], decode("c")),
        at_gpu("a", "3b", &["3c"], decode("d")),
        at_gpu("a", "3c", &["3b"], prefill("p")),
    ];
    check_question(&workers, &asking(8_000), "d<-p");
    let [far, near, computing] = workers;
    let busy = Worker { running: 60, ..near };
    check_question(&[far, busy, computing], &asking(100), "c<-p");
}

#[test]
fn a_link_that_is_slower_than_it_promises_is_found_out() {
    let [mut reader, linked, far] = linked_and_far(1_000);
    let measured = |link: KvLink, mib_us, copies| TransferModel {
        link: link.into(),
        mib_us,
        copies,
        ..Default::default()
    };
    let mut check = |transfers: Vec<TransferModel>, expected| {
        reader.transfers = transfers;
        check_question(&[reader.clone(), linked.clone(), far.clone()], &asking(8_000), expected);
    };
    check(vec![measured(KvLink::Nvlink, 2_000.0, 1_000)], "d<-q");
    check(vec![measured(KvLink::Nvlink, 2_000.0, 0)], "d<-p");
    let nonsense = [f32::NAN, f32::INFINITY, -1.0];
    check(nonsense.map(|us| measured(KvLink::Nvlink, us, 1_000)).to_vec(), "d<-p");
    check(vec![measured(KvLink::Unspecified, 9e9, 1_000); 1_000], "d<-p");
}

#[test]
fn a_network_that_is_faster_than_it_promises_is_too() {
    let [mut reader, linked, mut far] = linked_and_far(10_000);
    check_question(&[reader.clone(), linked.clone(), far.clone()], &asking(8_000), "d<-p");
    let link = KvLink::Network.into();
    reader.transfers =
        vec![TransferModel { link, mib_us: 1.0, copies: 1_000, ..Default::default() }];
    check_question(&[reader.clone(), linked.clone(), far.clone()], &asking(8_000), "d<-q");
    // But no faster than what the other side's card lets through.
    far.hardware.as_mut().unwrap().nics[0].bytes_per_s = GB;
    check_question(&[reader, linked, far], &asking(8_000), "d<-p");
}

#[test]
fn more_hardware_than_any_host_has_is_left_out() {
    let [mut reader, mut linked, far] = linked_and_far(0);
    for worker in [&mut reader, &mut linked] {
        let hardware = worker.hardware.as_mut().unwrap();
        hardware.gpus.extend(vec![Gpu::default(); 100_000]);
        hardware.nics.extend(vec![Nic::default(); 100_000]);
        hardware.kv_ways.extend(vec![String::new(); 100_000]);
    }
    let workers = [reader, linked, far];
    check_question(&workers, &asking(8_000), "d<-p");
    let core = core(&workers, NOW);
    let registered = |slot| core.workers.entry(slot).unwrap().registration.hardware.as_ref();
    let kept = registered(0).unwrap();
    assert_eq!((kept.gpus.len(), kept.nics.len(), kept.kv_ways.len()), (64, 64, 16));
}

#[test]
fn one_host_is_closer_than_a_slow_network() {
    let check = |gbit, expected| {
        let workers = [
            at_cpu("a", "1", gbit, decode("d")),
            at_cpu("b", "2", gbit, prefill("p")),
            at_cpu("a", "3", gbit, prefill("q")),
        ];
        check_question(&workers, &asking(1600), expected);
    };
    check(1, "d<-q");
    check(400, "d<-q");
    let other_host = at_cpu("c", "1", 400, decode("d"));
    let slow_card = at_cpu("b", "2", 1, prefill("p"));
    check_question(
        &[other_host, slow_card, at_cpu("a", "3", 400, prefill("q"))],
        &asking(1600),
        "d<-q",
    );
}

#[test]
fn a_decision_says_what_kv_goes_over() {
    let route = |workers: &[Worker]| core(workers, NOW).route(&asking(8_000), NOW).unwrap();
    let check = |workers: &[Worker], link: KvLink, said: &str| {
        let route = route(workers);
        assert_eq!(route.moved.map(|moved| moved.link), Some(link));
        assert!(route.to_string().contains(said), "{route}");
    };
    let [reader, linked, far] = linked_and_far(0);
    check(&[reader.clone(), linked.clone()], KvLink::Nvlink, ";link=nvlink;exposed_us=");
    check(&[reader.clone(), far.clone()], KvLink::Network, ";link=network;exposed_us=");
    let by_ucx = |mut worker: Worker| {
        worker.hardware.as_mut().unwrap().kv_ways.push("ucx".into());
        worker
    };
    check(&[by_ucx(reader.clone()), by_ucx(far)], KvLink::Rdma, ";link=rdma;");
    let unlinked = at_gpu("a", "3d", &[], prefill("p"));
    check(&[reader, unlinked], KvLink::Pcie, ";link=pcie;");
    let same = [at_cpu("a", "1", 1, decode("d")), at_cpu("a", "1", 1, prefill("p"))];
    check(&same, KvLink::Process, ";link=process;");
    assert_eq!(route(&[decode("d")]).moved, None);
    assert_eq!(route(&[decode("d"), prefill("p")]).moved.unwrap().link, KvLink::Network);
}

#[test]
fn however_many_prefill_workers_a_host_has_the_idle_one_among_them_is_near() {
    let busy = Worker { waiting_tokens: 100_000, ..prefill("") };
    let name = |number: usize| &*format!("p{number:03}").leak();
    for (readers_at, idle) in [(0, 99), (0, 0), (100, 99), (50, 70)] {
        let of_number = |number| {
            let worker = Worker { name: name(number), ..busy.clone() };
            let waiting_tokens = if number == idle { 0 } else { worker.waiting_tokens };
            at_gpu("a", "3c", &["3b"], Worker { waiting_tokens, ..worker })
        };
        let mut workers: Vec<Worker> = (0..100).map(of_number).collect();
        workers.insert(readers_at, at_gpu("a", "3b", &["3c"], decode("d")));
        workers.push(at_gpu("b", "3b", &[], prefill("q")));
        let route = core(&workers, NOW).route(&asking(8_000), NOW).unwrap();
        assert_eq!(route.prefill.unwrap().id.to_string(), name(idle));
        assert_eq!(route.moved.unwrap().link, KvLink::Nvlink);
    }
}

#[test]
fn a_spot_is_near_until_its_last_worker_goes() {
    let [reader, linked, far] = linked_and_far(0);
    let other = Worker { name: "o", waiting_tokens: 500, ..linked.clone() };
    let mut core = core(&[linked, reader, other, far], NOW);
    let mut check = |expected| {
        let route = core.route(&asking(8_000), NOW).unwrap();
        assert_eq!(route.moved.unwrap().link, expected);
        core.remove(&route.prefill.unwrap());
    };
    check(KvLink::Nvlink);
    check(KvLink::Nvlink);
    check(KvLink::Network);
}

#[test]
fn workers_that_go_are_nobodys_neighbours() {
    let [reader, linked, far] = linked_and_far(0);
    let mut core = core(&[reader, linked, far.clone()], NOW);
    let prefill_of =
        |core: &mut Core| core.route(&asking(8_000), NOW).unwrap().prefill.unwrap().id.to_string();
    assert_eq!(prefill_of(&mut core), "p");
    core.remove(&WorkerLife::new("p", 0));
    assert_eq!(prefill_of(&mut core), "q");
    // It takes the place of the one that went, and is on another host.
    let later = Worker { name: "r", ..far };
    core.register(registration(&later), NOW);
    let reported = core.report(report(&later), NOW);
    assert_eq!(reported, Sync::Kept);
    let route = core.route(&asking(8_000), NOW).unwrap();
    assert_eq!(route.moved.unwrap().link, KvLink::Network);
    core.remove(&WorkerLife::new("d", 0));
    core.remove(&WorkerLife::new("q", 0));
    core.remove(&WorkerLife::new("r", 0));
    assert!(core.route(&asking(8_000), NOW).is_err());
}

/// Pseudo-random numbers below a bound.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

const NAMES: [&str; 24] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s",
    "t", "u", "v", "w", "x",
];

/// What a decision finds beside the best of all pairs, in clusters of several hosts with GPUs.
#[test]
fn looking_at_few_pairs_is_nearly_as_good_as_at_all() {
    let mut numbers = Numbers(7);
    let (mut equal, mut decisions) = (0, 0);
    for _ in 0..300 {
        let workers: Vec<Worker> = NAMES
            .into_iter()
            .map(|name| {
                let host = ["1", "2", "3", "4"][numbers.below(4) as usize];
                let bus = ["3b", "3c", "5d", "5e"][numbers.below(4) as usize];
                let is_prefill = numbers.below(2) == 0;
                let worker = Worker {
                    running: numbers.below(8) as u32,
                    waiting_tokens: numbers.below(4) * 500,
                    ..if is_prefill { prefill(name) } else { decode(name) }
                };
                let running = worker.running;
                Worker { running, ..at_gpu(host, bus, &["3b", "3c"], worker) }
            })
            .collect();
        let core = core(&workers, NOW);
        let question = asking(100 << numbers.below(7));
        let (found, best) = found_and_best(&core, &question);
        assert!(best <= found * 1.0001, "{best} {found}");
        assert!(found <= best * 1.1, "{found} us where {best} us were possible");
        equal += u32::from(found <= best * 1.0001);
        decisions += 1;
    }
    assert!(equal * 10 >= decisions * 9, "{equal} of {decisions} are the best");
}

/// The costs of the pair that is found, and of the best of all pairs.
fn found_and_best(core: &Core, question: &Question) -> (f32, f32) {
    let pools = core.choices(question, NOW);
    let (_, choice) = &pools[0];
    let gauges = core.workers.gauges();
    let nothing_cached = |_: Slot| 0;
    let receiving =
        |slot: Slot| cost::receive() + cost::stream(&gauges[slot as usize], choice.sizes);
    let computing = |slot: Slot| cost::prefill(&gauges[slot as usize], choice.sizes, 0, NOW);
    let best_of = |decode: &[Slot], prefill: &[Slot]| {
        let computing: Vec<Half> = prefill.iter().map(|slot| (*slot, computing(*slot))).collect();
        let mut pairs = Pairs::new(&core.workers, choice.sizes, &nothing_cached, &computing);
        decode.iter().for_each(|slot| pairs.decode((*slot, receiving(*slot))));
        pairs.best().map_or(f32::INFINITY, |pair| Cost::total_us(&pair.cost))
    };
    let (decode, prefill) = (choice.pool.decode.iter(), choice.pool.prefill.iter());
    let all = decode.flat_map(|decode| prefill.clone().map(move |prefill| (*decode, *prefill)));
    let costs = all.map(|(decode, prefill)| best_of(&[decode], &[prefill]));
    let best = costs.fold(f32::INFINITY, f32::min);
    (best_of(&choice.pool.decode, &choice.pool.prefill), best)
}
