//! Counts copies of KV blocks from other workers, by the way that made them, and learns from them how long
//! they take (`protocol::v1::TransferModel`), for each link by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use protocol::link;
use protocol::v1::{Hardware, KvDescriptor, KvLink, TransferModel};

use crate::regression::Regression;

const MIB: f32 = (1 << 20) as f32;

/// See the module's description.
#[derive(Default)]
pub struct Transfers {
    ours: Option<Hardware>,
    /// By link: a few.
    links: Mutex<BTreeMap<KvLink, Regression>>,
    /// By the way's name, likewise.
    copied: Mutex<BTreeMap<&'static str, Copied>>,
    failed: AtomicU64,
}

/// What came to this worker by one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Copies that were made.
    pub copies: u64,
    /// Bytes of their blocks.
    pub bytes: u64,
}

impl Transfers {
    /// Those of a worker that runs on `ours`.
    pub fn new(ours: Option<Hardware>) -> Self {
        Self { ours, ..Self::default() }
    }

    /// What copies by a way of this name go over, from the blocks that were granted.
    pub fn link(&self, way: &str, granted: &KvDescriptor) -> KvLink {
        link::over(way, self.ours.as_ref(), granted.place.as_ref(), granted.rdma)
    }

    /// A copy of so many bytes was made by a way of this name. Nothing is learned where it is not known
    /// over what.
    pub fn record(&self, way: &'static str, link: KvLink, bytes: usize, took: Duration) {
        let mut copied = self.copied.lock();
        let by_way = copied.entry(way).or_default();
        by_way.copies += 1;
        by_way.bytes += bytes as u64;
        drop(copied);
        if link == KvLink::Unspecified {
            return;
        }
        let (bytes, took_us) = (bytes as f32, took.as_secs_f32() * 1e6);
        let features = [1.0, bytes / MIB, 0.0, 0.0, 0.0];
        self.links.lock().entry(link).or_default().record(features, [bytes, 0.0, 0.0], took_us);
    }

    /// A prompt that another worker was to compute is computed here after all.
    pub fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// What came, by the names of ways.
    pub fn copied(&self) -> Vec<(&'static str, Copied)> {
        self.copied.lock().iter().map(|(way, copied)| (*way, *copied)).collect()
    }

    /// What was learned.
    pub fn models(&self) -> Vec<TransferModel> {
        let mut links = self.links.lock();
        let model = |(link, copies): (&KvLink, &mut Regression)| {
            let [copy_us, mib_us, ..] = copies.learn()?;
            let link = (*link).into();
            Some(TransferModel { link, copy_us, mib_us, copies: copies.observations() })
        };
        links.iter_mut().filter_map(model).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_learned_apart() {
        let transfers = Transfers::default();
        assert_eq!(transfers.models(), []);
        for round in 0..40usize {
            let bytes = (round % 8 + 1) << 18;
            let took = |copy_us: f32, mib_us: f32| {
                let noise = if round % 13 == 12 { 8.0 } else { 1.0 };
                Duration::from_secs_f32(noise * (copy_us + mib_us * bytes as f32 / MIB) / 1e6)
            };
            transfers.record(link::WAY_TCP, KvLink::Network, bytes, took(400.0, 900.0));
            transfers.record(link::WAY_LOCAL, KvLink::Process, bytes, took(5.0, 60.0));
            transfers.record(link::WAY_TCP, KvLink::Unspecified, bytes, took(1.0, 1.0));
        }
        let [process, network] = transfers.models()[..] else { panic!("two links") };
        let check = |model: TransferModel, link: KvLink, expected_us: f32| {
            assert_eq!((model.link(), model.copies), (link, 40));
            let us = model.rate().copy_bytes_us(MIB);
            assert!((us / expected_us - 1.0).abs() < 0.1, "{link:?}: {us}");
        };
        let [(local, by_local), (tcp, by_tcp)] = transfers.copied()[..] else { panic!("two ways") };
        assert_eq!((local, tcp), (link::WAY_LOCAL, link::WAY_TCP));
        assert_eq!((by_local.copies, by_tcp.copies), (40, 80));
        assert_eq!((by_local.bytes, by_tcp.bytes), (45 << 20, 90 << 20));
        check(process, KvLink::Process, 65.0);
        check(network, KvLink::Network, 1_300.0);
    }
}
