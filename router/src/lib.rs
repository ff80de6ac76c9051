//! Chooses workers: the ones with the lowest predicted cost in seconds, given what their prefix
//! caches hold and what they are busy with.
//!
//! `Core` is synchronous, does no I/O and reads no clock; `run` is the thin shell that feeds it
//! from the bus.

mod choice;
mod core;
mod cost;
mod fallback;
mod feeds;
mod gauge;
mod holders;
mod near;
mod pair;
mod pool;
mod prefix_index;
mod question;
mod resync;
mod run;
mod telling;
mod worker_table;
mod workers;

pub use crate::choice::Route;
pub use crate::core::Core;
pub use cost::Cost;
pub use fallback::Fallback;
pub use prefix_index::Sync;
pub use question::{NoRoute, Question};
pub use run::{Router, RouterIdentity};
pub use worker_table::Time;
