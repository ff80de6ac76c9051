//! Conversations through the chat templates of all families, and templates that are no such thing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzz::conversations(data));
