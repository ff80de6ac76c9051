//! Chooses workers: the ones with the lowest predicted cost in seconds, given what their prefix
//! caches hold and what they are busy with.
//!
//! `Core` is synchronous, does no I/O and reads no clock; `run` is the thin shell that feeds it
//! from the bus.

mod core;
mod cost;
mod prefix_index;
mod run;
mod worker_table;

pub use crate::core::{Core, NoRoute, Question, Route};
pub use run::run;
