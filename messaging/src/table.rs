//! Entries by key, and watches that begin with the present state.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::registry::Change;

/// Changes that one watcher may lag behind; beyond, its watch ends, and it has to begin anew from
/// what is there then.
const WATCH_QUEUE: usize = 4096;

/// Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Table {
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

impl Table {
    /// Sets an entry. Watchers hear of it where its value is another than before.
    pub fn put(&self, key: &str, value: Bytes) {
        let mut shared = self.shared.lock();
        let before = shared.entries.insert(key.to_string(), value.clone());
        if before.as_ref() == Some(&value) {
            return;
        }
        shared.notify(Change::Put(key.to_string(), value));
    }

    /// Removes an entry.
    pub fn delete(&self, key: &str) {
        let mut shared = self.shared.lock();
        if shared.entries.remove(key).is_some() {
            shared.notify(Change::Deleted(key.to_string()));
        }
    }

    /// Whether there is such an entry.
    pub fn contains(&self, key: &str) -> bool {
        self.shared.lock().entries.contains_key(key)
    }

    /// All keys.
    pub fn keys(&self) -> Vec<String> {
        self.shared.lock().entries.keys().cloned().collect()
    }

    /// All entries whose key begins with `prefix`, and their changes from now on.
    pub fn watch(&self, prefix: &str) -> (Vec<(String, Bytes)>, mpsc::Receiver<Change>) {
        let mut shared = self.shared.lock();
        let present = shared.entries.range(prefix.to_string()..);
        let present = present
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let (changes, receiver) = mpsc::channel(WATCH_QUEUE);
        shared.watchers.push(Watcher { prefix: prefix.to_string(), changes });
        (present, receiver)
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
