//! What a process with workers says at its start: what they compute with.

use indicatif::BinaryBytes;
use worker::EngineHost;

use crate::engines::Engines;

/// Two lines: on what and under which arithmetic, and the KV pool of each worker, which are alike.
pub fn lines(engines: &Engines, workers: &[&EngineHost]) -> String {
    let Some(worker) = workers.first() else { return String::new() };
    let (layout, memory) = (worker.layout(), worker.memory());
    let blocks = memory.blocks();
    let bytes = BinaryBytes((blocks * memory.block_bytes()) as u64);
    let (times, each) = match workers.len() {
        1 => (String::new(), ""),
        workers => (format!("{workers} x "), " each"),
    };
    format!(
        "  on    {}, numerics {}\n  pool  {times}{blocks} blocks of {} tokens, {bytes}{each}\n",
        engines.place(),
        layout.numerics_id,
        layout.block_size,
    )
}
