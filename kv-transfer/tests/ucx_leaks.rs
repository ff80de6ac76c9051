//! What transfers by UCX leave behind: alone in its process, which is what it looks at.

#![allow(clippy::unwrap_used)]

mod common;

use common::ucx::*;
use common::*;
use rustix::process::Signal;

/// File descriptors of this process, and its children, dead ones too.
fn held() -> (usize, usize) {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let is_ours = |process: &std::fs::DirEntry| {
        let status = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let parent = status.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        parent == Some(&std::process::id().to_string())
    };
    (files, std::fs::read_dir("/proc").unwrap().flatten().filter(is_ours).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_die_in_transfers_leave_nothing_behind() {
    let mut before = None;
    for round in 0..6 {
        {
            let mut pair = Pair::large().await;
            let memory = pair.destination.memory().clone();
            let pulling = pair.pull(soon());
            some_has_come(&memory).await;
            let agents = [&pair.reader, pair.source_agent()];
            strike(agents[round % 2], Signal::KILL);
            let (pulled, _) = pulling.await.unwrap();
            pulled.unwrap_err();
            until_back(agents[round % 2]).await;
        }
        let after = held();
        println!("round {round}: {after:?}");
        // The first round opens what stays open, such as the runtime's own files.
        before.get_or_insert(after);
        eventually("all is let go of", || held() <= before.unwrap()).await;
    }
    assert_eq!(held().1, 0, "a child is left");
}
