//! CPU time and memory of processes, read from Linux's /proc. Elsewhere there is nothing to read,
//! and nothing is reported.

use std::time::Instant;

use serde::Serialize;

use crate::error::LoadtestError;

/// What a process used during the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessUse {
    pub pid: u32,
    pub name: String,
    /// This is the load generator itself.
    pub is_generator: bool,
    /// It ended before the run did.
    pub ended: bool,
    pub cpu_s: f64,
    /// Of one CPU: two busy ones are 200.
    pub cpu_percent: f64,
    /// The largest of the samples.
    pub rss_peak_bytes: u64,
    pub rss_mean_bytes: u64,
}

/// Processes that are looked at again and again.
pub struct Processes {
    all: Vec<Process>,
}

struct Process {
    pid: u32,
    is_generator: bool,
    first: Stat,
    last: Stat,
    began: Instant,
    seen: Instant,
    rss_peak_bytes: u64,
    rss_sum_bytes: u64,
    samples: u64,
    ended: bool,
}

impl Processes {
    /// This process and `pids`. Errors: one of them is not there.
    pub fn find(pids: &[u32]) -> Result<Self, LoadtestError> {
        let own = Process::find(std::process::id(), true);
        let mut all: Vec<Process> = own.into_iter().collect();
        for pid in pids {
            let sentence = || format!("--pid {pid}: there is no such process");
            let found = Process::find(*pid, false);
            all.push(found.ok_or_else(|| LoadtestError::Arguments(sentence()))?);
        }
        Ok(Self { all })
    }

    /// What is used counts from now on.
    pub fn restart(&mut self) {
        for process in &mut self.all {
            if let Some(fresh) = Process::find(process.pid, process.is_generator) {
                *process = fresh;
            }
        }
    }

    /// Looks at all of them.
    pub fn sample(&mut self) {
        self.all.iter_mut().for_each(Process::sample);
    }

    /// What they used, up to the last sample.
    pub fn used(&self) -> Vec<ProcessUse> {
        self.all.iter().map(Process::used).collect()
    }
}

impl Process {
    fn find(pid: u32, is_generator: bool) -> Option<Self> {
        let (stat, now) = (Stat::read(pid)?, Instant::now());
        let rss_peak_bytes = stat.rss_bytes;
        let (began, seen, rss_sum_bytes) = (now, now, rss_peak_bytes);
        let (first, last, samples, ended) = (stat.clone(), stat, 1, false);
        Some(Self {
            pid,
            is_generator,
            first,
            last,
            began,
            seen,
            rss_peak_bytes,
            rss_sum_bytes,
            samples,
            ended,
        })
    }

    fn sample(&mut self) {
        // Another beginning is another process with the same number.
        let same = |stat: &Stat| stat.begin_ticks == self.first.begin_ticks;
        let read = Stat::read(self.pid);
        if read.is_none() && std::fs::exists(format!("/proc/{}", self.pid)).unwrap_or(true) {
            // It is there and cannot be looked at just now, as when no file can be opened.
            return;
        }
        let Some(stat) = read.filter(same).filter(|_| !self.ended) else {
            self.ended = true;
            return;
        };
        self.rss_peak_bytes = self.rss_peak_bytes.max(stat.rss_bytes);
        self.rss_sum_bytes += stat.rss_bytes;
        self.samples += 1;
        self.seen = Instant::now();
        self.last = stat;
    }

    fn used(&self) -> ProcessUse {
        let ticks = self.last.cpu_ticks - self.first.cpu_ticks;
        let cpu_s = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        let elapsed_s = (self.seen - self.began).as_secs_f64();
        ProcessUse {
            pid: self.pid,
            name: self.last.name.clone(),
            is_generator: self.is_generator,
            ended: self.ended,
            cpu_s,
            cpu_percent: if elapsed_s > 0.0 { 100.0 * cpu_s / elapsed_s } else { 0.0 },
            rss_peak_bytes: self.rss_peak_bytes,
            rss_mean_bytes: self.rss_sum_bytes / self.samples,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    /// In user and kernel mode, over all threads.
    cpu_ticks: u64,
    begin_ticks: u64,
    rss_bytes: u64,
}

impl Stat {
    /// `None` if the process is not there, or has ended and not been waited for.
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// See proc_pid_stat(5). The name is in parentheses and may hold any character.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        Some(Self {
            name: name.into(),
            cpu_ticks: number(11)? + number(12)?,
            begin_ticks: number(19)?,
            rss_bytes: number(21)? * rustix::param::page_size() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_lines() {
        let line = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 9 0 0 0 30 12 0 0 20 0 4 0 555 99 3 0 0")
        };
        let page = rustix::param::page_size() as u64;
        for name in ["stator", "a) S (b", "with space"] {
            let stat = Stat::parse(&line(name, "S")).unwrap();
            let expected =
                Stat { name: name.into(), cpu_ticks: 42, begin_ticks: 555, rss_bytes: 3 * page };
            assert_eq!(stat, expected);
        }
        assert_eq!(Stat::parse(&line("dead", "Z")), None);
        assert_eq!(Stat::parse("7 (short) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
