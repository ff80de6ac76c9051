use messaging::{Change, Registry};

use crate::check;
use crate::common::{deleted, put, value};

/// Waits until a key has a value.
async fn has(registry: &Registry, key: &str, text: &'static str) {
    let (present, mut watch) = registry.watch(key);
    if present.contains(&(key.to_string(), value(text))) {
        return;
    }
    while watch.next().await.unwrap() != put(key, text) {}
}

#[test]
fn a_watch_begins_with_what_is_there_and_goes_on_with_changes() {
    check(|pair| {
        Box::pin(async {
            pair.a.registry.put("workers/a/1", value("v"));
            pair.a.registry.put("other/b", value("v"));
            has(&pair.b.registry, "other/b", "v").await;
            has(&pair.b.registry, "workers/a/1", "v").await;
            let (present, mut watch) = pair.b.registry.watch("workers/");
            assert_eq!(present, [("workers/a/1".to_string(), value("v"))]);

            pair.a.registry.put("workers/c/2", value("v"));
            assert_eq!(watch.next().await, Some(put("workers/c/2", "v")));
            pair.a.registry.put("workers/c/2", value("w"));
            assert_eq!(watch.next().await, Some(put("workers/c/2", "w")));
            pair.a.registry.delete("workers/a/1");
            assert_eq!(watch.next().await, Some(deleted("workers/a/1")));
            pair.a.registry.delete("workers/never-there");
            pair.b.registry.put("workers/d/3", value("v"));
            assert_eq!(watch.next().await, Some(put("workers/d/3", "v")));
        })
    });
}

#[test]
fn an_unchanged_value_is_no_change() {
    check(|pair| {
        Box::pin(async {
            let (_, mut watch) = pair.b.registry.watch("workers/");
            for (key, text) in [("a", "v"), ("a", "v"), ("a", "w"), ("b", "v")] {
                pair.a.registry.put(&format!("workers/{key}"), value(text));
                pair.settled().await;
            }
            for (key, text) in [("a", "v"), ("a", "w"), ("b", "v")] {
                assert_eq!(watch.next().await, Some(put(&format!("workers/{key}"), text)));
            }
        })
    });
}

#[test]
fn what_was_deleted_can_be_put_again() {
    check(|pair| {
        Box::pin(async {
            let (_, mut watch) = pair.b.registry.watch("");
            pair.a.registry.put("k", value("one"));
            assert_eq!(watch.next().await, Some(put("k", "one")));
            pair.a.registry.delete("k");
            assert_eq!(watch.next().await, Some(deleted("k")));
            pair.a.registry.put("k", value("two"));
            assert_eq!(watch.next().await, Some(put("k", "two")));
        })
    });
}

#[test]
fn changes_of_one_key_arrive_in_order_and_end_at_the_last() {
    check(|pair| {
        Box::pin(async {
            let (_, mut watch) = pair.b.registry.watch("k");
            for number in 0..200_u32 {
                pair.a.registry.put("k", number.to_be_bytes().to_vec().into());
            }
            let mut last = None;
            while last != Some(199) {
                let Some(Change::Put(_, value)) = watch.next().await else { panic!("no value") };
                let number = u32::from_be_bytes(value.as_ref().try_into().unwrap());
                assert!(last.is_none_or(|last| last < number), "{last:?} then {number}");
                last = Some(number);
            }
        })
    });
}

#[test]
fn a_watcher_that_lags_too_far_is_ended_and_may_begin_anew() {
    check(|pair| {
        Box::pin(async {
            let (_, mut slow) = pair.b.registry.watch("");
            for number in 0..5000_u32 {
                pair.a.registry.put(&format!("k/{number:05}"), value("v"));
            }
            has(&pair.b.registry, "k/04999", "v").await;
            pair.settled().await;
            let mut changes = 0;
            while slow.next().await.is_some() {
                changes += 1;
            }
            assert!(changes < 5000, "{changes}");
            loop {
                let (present, _) = pair.b.registry.watch("k/");
                if present.len() == 5000 {
                    break;
                }
                tokio::task::yield_now().await;
            }
        })
    });
}
