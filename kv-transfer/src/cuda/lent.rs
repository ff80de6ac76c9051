//! What a source tells of its pool to a reader in another process.

use cuda_driver::IpcHandle;

/// A pool that may be mapped by another process.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Lent {
    /// Bytes of all its blocks.
    pub bytes: u64,
    pub memory: IpcHandle,
    /// Stands for the computation that wrote blocks last.
    pub(super) event: IpcHandle,
}

impl Lent {
    /// The wire form: bytes (8, little-endian), the memory's handle (64), the event's (64).
    pub(crate) fn encode(&self) -> Vec<u8> {
        [&self.bytes.to_le_bytes()[..], &self.memory.0, &self.event.0].concat()
    }

    /// Reads the wire form.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (bytes, rest) = payload.split_first_chunk::<8>()?;
        let (memory, event) = rest.split_first_chunk::<64>()?;
        Some(Self {
            bytes: u64::from_le_bytes(*bytes),
            memory: IpcHandle(*memory),
            event: IpcHandle(event.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_has_one_length() {
        let lent = Lent { bytes: 7, memory: IpcHandle([1; 64]), event: IpcHandle([2; 64]) };
        let encoded = lent.encode();
        assert_eq!(encoded.len(), 136);
        assert!(Lent::decode(&encoded) == Some(lent));
        assert!(Lent::decode(&encoded[1..]).is_none());
        assert!(Lent::decode(&[&encoded[..], &[0]].concat()).is_none());
        assert!(Lent::decode(&[]).is_none());
    }
}
