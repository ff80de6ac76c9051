//! Answers as server-sent events.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzz::events(data));
