//! The text of an answer, cut in several ways, in each dialect.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzz::answers(data));
