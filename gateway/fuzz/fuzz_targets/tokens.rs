//! Tokens through detokenizer and stop strings.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzz::tokens(data));
