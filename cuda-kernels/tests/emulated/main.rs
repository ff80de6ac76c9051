//! The kernels, run on the CPU: the same sources and launches as on a card, compiled by g++ with what
//! CUDA has and C++ has not (`cuda-driver/fake`).
//!
//! Each is compared with the engine's CPU kernels, bit for bit where both have one order of
//! operations, or with plain f64 arithmetic; with its threads run in several orders; under the address
//! sanitizer, which sees each buffer's end; and under the thread sanitizer, to which threads of the
//! card are threads that barriers alone put in an order.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod attention;
mod blocks;
mod defects;
mod emulator;
mod gemv;
mod layer;
mod sampling;
