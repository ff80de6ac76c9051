//! What processes have of memory when nothing is asked of them.

use std::collections::BTreeMap;
use std::fmt::Write;

const MIB: f64 = 1024.0 * 1024.0;

/// What a process has at rest, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Its name.
    pub process: String,
    /// Which of its lives, from 1.
    pub life: u64,
    /// At the first rest.
    pub first_bytes: u64,
    /// At the last.
    pub last_bytes: u64,
    /// How often it was looked at.
    pub rests: usize,
}

impl Memory {
    /// The first look.
    pub fn new(process: String, life: u64, bytes: u64) -> Self {
        Self { process, life, first_bytes: bytes, last_bytes: bytes, rests: 0 }
    }

    /// A later one.
    pub fn later(&mut self, bytes: u64) {
        self.last_bytes = bytes;
        self.rests += 1;
    }
}

/// As Markdown: of each process the life that was looked at most often.
pub fn table(memory: &[Memory]) -> String {
    let mut longest: BTreeMap<&str, &Memory> = BTreeMap::new();
    for life in memory {
        let known = longest.entry(&life.process).or_insert(life);
        if life.rests > known.rests {
            *known = life;
        }
    }
    let mut table = String::from(
        "Memory at rest, of each process' longest life:\n\n\
         | process | rests | first, MiB | last, MiB | growth, MiB |\n|---|--:|--:|--:|--:|\n",
    );
    for life in longest.values() {
        let (first, last) = (life.first_bytes as f64 / MIB, life.last_bytes as f64 / MIB);
        let (process, rests) = (&life.process, life.rests);
        let growth = last - first;
        let _infallible =
            writeln!(table, "| {process} | {rests} | {first:.1} | {last:.1} | {growth:+.1} |");
    }
    table.push('\n');
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_of_the_longest_life() {
        let mut long = Memory::new("gateway-0".into(), 1, 10 << 20);
        long.later(11 << 20);
        long.later(12 << 20);
        let table = super::table(&[Memory::new("gateway-0".into(), 2, 50 << 20), long]);
        assert!(table.contains("| gateway-0 | 2 | 10.0 | 12.0 | +2.0 |"), "{table}");
    }
}
