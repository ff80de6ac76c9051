//! `stator loadtest`: sends requests to any OpenAI-compatible server and says what its clients saw.
//!
//! In an open loop, arrivals are drawn ahead of time and latencies count from the arrival that was
//! meant: a server that stalls cannot slow down the questions, so its stall shows in full. In a
//! closed loop, so many workers each send their next request when the last one ends.
//!
//! The crate knows none of Stator's others: what it sees is what any client would.

mod args;
mod arrivals;
mod calibrate;
mod chunk;
mod client;
mod closed_loop;
mod connection;
mod conversation;
mod error;
mod exchange;
mod figures;
mod measurement;
mod open_files;
mod open_loop;
mod output;
mod processes;
mod progress;
mod random;
mod recorder;
mod report;
mod request;
mod run;
mod sse;
mod table;
mod tally;
mod target;
mod turn;
mod words;

pub use args::{Args, Arrivals};
pub use error::LoadtestError;
pub use report::{Figures, Report};
pub use run::run;
