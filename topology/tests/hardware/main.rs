//! What is read of hosts that are made up: a tree of files in place of /sys and /proc, and a library in
//! place of the NVIDIA driver's.

#![allow(clippy::unwrap_used)]

mod fake;
mod gpus;
mod host;
mod look;
mod registration;
