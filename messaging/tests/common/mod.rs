//! What tests of the registry say about entries.

use bytes::Bytes;
use messaging::Change;

pub fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub fn put(key: &str, text: &'static str) -> Change {
    Change::Put(key.to_string(), value(text))
}

pub fn deleted(key: &str) -> Change {
    Change::Deleted(key.to_string())
}
