//! Runs a cluster of real processes under real load, breaks one of its parts every few seconds, and
//! compares every answer with the one that an undisturbed server gave.
//!
//! What is broken and in which order is decided by a seed; when exactly is not, because processes
//! and their clocks are real.

mod answer;
pub mod binaries;
mod client;
pub mod cluster;
mod component;
pub mod fault;
mod inflict;
mod journal;
mod load;
mod memory;
mod metrics;
mod oracle;
pub mod phase;
mod process;
mod proxies;
mod proxy;
mod question;
pub mod report;
mod role;
mod round;
pub mod run;
mod sockets;
