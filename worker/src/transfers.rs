//! Learns how long copies of KV blocks from other workers take (`protocol::v1::TransferModel`), for each
//! link by itself, from the copies that are made.

use std::collections::BTreeMap;
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
}

impl Transfers {
    /// Those of a worker that runs on `ours`.
    pub fn new(ours: Option<Hardware>) -> Self {
        Self { ours, links: Mutex::default() }
    }

    /// What copies by a way of this name go over, from the blocks that were granted.
    pub fn link(&self, way: &str, granted: &KvDescriptor) -> KvLink {
        link::over(way, self.ours.as_ref(), granted.place.as_ref(), granted.rdma)
    }

    /// A copy of so many bytes was made. Nothing is learned where it is not known over what.
    pub fn record(&self, link: KvLink, bytes: usize, took: Duration) {
        if link == KvLink::Unspecified {
            return;
        }
        let (bytes, took_us) = (bytes as f32, took.as_secs_f32() * 1e6);
        let features = [1.0, bytes / MIB, 0.0, 0.0, 0.0];
        self.links.lock().entry(link).or_default().record(features, [bytes, 0.0, 0.0], took_us);
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
            transfers.record(KvLink::Network, bytes, took(400.0, 900.0));
            transfers.record(KvLink::Process, bytes, took(5.0, 60.0));
            transfers.record(KvLink::Unspecified, bytes, took(1.0, 1.0));
        }
        let [process, network] = transfers.models()[..] else { panic!("two links") };
        let check = |model: TransferModel, link: KvLink, expected_us: f32| {
            assert_eq!((model.link(), model.copies), (link, 40));
            let us = model.rate().copy_bytes_us(MIB);
            assert!((us / expected_us - 1.0).abs() < 0.1, "{link:?}: {us}");
        };
        check(process, KvLink::Process, 65.0);
        check(network, KvLink::Network, 1_300.0);
    }
}
