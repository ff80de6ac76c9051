//! Whole load tests against a server in the same process.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod failures;
mod runs;
mod support;
