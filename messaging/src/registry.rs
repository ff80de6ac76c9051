//! Who is there: entries by key, and watches that begin with the present state.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Changes that one watcher may lag behind; beyond, its watch ends, and it has to begin anew from
/// what is there then.
const WATCH_QUEUE: usize = 4096;

/// What happened to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, with this value.
    Put(String, Bytes),
    /// It is gone.
    Deleted(String),
}

/// A handle to the registry of this process. Clones share it.
#[derive(Clone, Default)]
pub struct Registry {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    entries: BTreeMap<String, Bytes>,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    changes: mpsc::Sender<Change>,
}

/// The changes of the entries under a prefix.
pub struct Watch {
    changes: mpsc::Receiver<Change>,
}

impl Registry {
    /// Sets an entry.
    pub fn put(&self, key: &str, value: Bytes) {
        let mut shared = self.shared.lock();
        shared.entries.insert(key.to_string(), value.clone());
        shared.notify(Change::Put(key.to_string(), value));
    }

    /// Removes an entry.
    pub fn delete(&self, key: &str) {
        let mut shared = self.shared.lock();
        if shared.entries.remove(key).is_some() {
            shared.notify(Change::Deleted(key.to_string()));
        }
    }

    /// All entries whose key begins with `prefix`, and their changes from now on.
    pub fn watch(&self, prefix: &str) -> (Vec<(String, Bytes)>, Watch) {
        let mut shared = self.shared.lock();
        let present = shared.entries.range(prefix.to_string()..);
        let present = present
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let (changes, receiver) = mpsc::channel(WATCH_QUEUE);
        shared.watchers.push(Watcher { prefix: prefix.to_string(), changes });
        (present, Watch { changes: receiver })
    }
}

impl Shared {
    fn notify(&mut self, change: Change) {
        let (Change::Put(key, _) | Change::Deleted(key)) = &change;
        self.watchers.retain(|watcher| {
            !key.starts_with(&watcher.prefix) || watcher.changes.try_send(change.clone()).is_ok()
        });
    }
}

impl Watch {
    /// The next change; none once the watch has ended.
    pub async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_begins_with_what_is_there() {
        let registry = Registry::default();
        let value = Bytes::from_static(b"v");
        registry.put("workers/a", value.clone());
        registry.put("other/b", value.clone());
        let (present, mut watch) = registry.watch("workers/");
        assert_eq!(present, [("workers/a".to_string(), value.clone())]);
        registry.put("workers/c", value.clone());
        registry.delete("workers/a");
        registry.delete("workers/never-there");
        registry.put("workers/d", value.clone());
        let put = |key: &str| Change::Put(key.to_string(), value.clone());
        let expected = [put("workers/c"), Change::Deleted("workers/a".into()), put("workers/d")];
        for change in expected {
            assert_eq!(watch.next().await, Some(change));
        }
    }
}
