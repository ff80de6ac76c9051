//! The bodies of chat, completion and tokenize requests, and the grammars that they ask for.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::fuzz::requests(data));
