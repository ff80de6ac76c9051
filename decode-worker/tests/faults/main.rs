//! Faults in the handoff, each at a named point: the tokens are those of a worker alone, each
//! request has one end, and within a stated time no block is used and no lease is left.
//!
//! Time is the simulated clock's, on which steps of the mock engines take a few milliseconds and all
//! else takes none.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod client;
mod proxy;
mod system;

mod cancelled;
mod copies;
mod full;
mod leases;
mod one_token;
mod prefill_fails;
mod refused;
