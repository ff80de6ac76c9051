//! Who is there: entries by key, and watches that begin with the present state.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::nats::Keeper;
use crate::table::Table;

/// What happened to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, with this value.
    Put(String, Bytes),
    /// It is gone.
    Deleted(String),
}

/// A handle to the registry, of this process or of the cluster. Clones share it.
///
/// Over NATS, `table` is what was last heard of the cluster's registry, and stays in force while
/// the server is away; `keeper` keeps the entries of this process alive there.
#[derive(Clone, Default)]
pub struct Registry {
    table: Table,
    keeper: Option<Keeper>,
}

/// The changes of the entries under a prefix.
pub struct Watch {
    changes: mpsc::Receiver<Change>,
}

impl Registry {
    pub(crate) fn over_nats(table: Table, keeper: Keeper) -> Self {
        Self { table, keeper: Some(keeper) }
    }

    /// Sets an entry, and keeps it alive until it is deleted or this process ends. Watchers hear
    /// of it where its value is another than before.
    pub fn put(&self, key: &str, value: Bytes) {
        match &self.keeper {
            None => self.table.put(key, value),
            Some(keeper) => keeper.put(key, value),
        }
    }

    /// Removes an entry.
    pub fn delete(&self, key: &str) {
        match &self.keeper {
            None => self.table.delete(key),
            Some(keeper) => keeper.delete(key),
        }
    }

    /// All entries whose key begins with `prefix`, and their changes from now on.
    pub fn watch(&self, prefix: &str) -> (Vec<(String, Bytes)>, Watch) {
        let (present, changes) = self.table.watch(prefix);
        (present, Watch { changes })
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
