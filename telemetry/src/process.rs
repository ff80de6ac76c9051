//! What this process uses, by the names that Prometheus' own libraries give it.

use std::fs;

use crate::Metrics;

/// Adds the process' metrics; on systems without /proc there are none.
pub fn register(metrics: &Metrics) {
    if usage().is_none() {
        return;
    }
    let read = |of: fn(Usage) -> f64| move || usage().map_or(0.0, of);
    metrics.gauge(
        "process_resident_memory_bytes",
        "Memory of this process that is in RAM.",
        read(|usage| usage.resident_bytes),
    );
    metrics.counter(
        "process_cpu_seconds",
        "Time on CPUs that this process has had.",
        read(|usage| usage.cpu_s),
    );
    metrics.gauge("process_open_fds", "Open file descriptors.", open_files);
}

struct Usage {
    resident_bytes: f64,
    cpu_s: f64,
}

/// From /proc/self/stat (see proc(5)).
fn usage() -> Option<Usage> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the command in parentheses, which may itself contain anything.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // `fields` begins with the third field.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let (user_ticks, system_ticks, resident_pages) = (field(14)?, field(15)?, field(24)?);
    Some(Usage {
        resident_bytes: resident_pages * rustix::param::page_size() as f64,
        cpu_s: (user_ticks + system_ticks) / rustix::param::clock_ticks_per_second() as f64,
    })
}

fn open_files() -> f64 {
    fs::read_dir("/proc/self/fd").map_or(0.0, |files| files.count() as f64)
}
