//! Random walks through grammars: what is allowed, what is forced, and where it ends.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use grammar::{Compiler, Grammar, GrammarError};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use tokenizer::Tokenizer;
use tokenizer::test_support::byte_level_tokenizer;

const END: u32 = 0;
const WALKS: u64 = 40;
const TOKENS_MAX: usize = 400;

fn compiler() -> (Arc<Tokenizer>, Compiler) {
    let tokenizer = Arc::new(byte_level_tokenizer());
    let compiler = Compiler::new(tokenizer.clone(), tokenizer.tokens(), &[END]).unwrap();
    (tokenizer, compiler)
}

/// Tokens of a random answer, up to and with its end.
fn walk(grammar: &Grammar, seed: u64) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut state, mut tokens) = (grammar.begin(), Vec::new());
    while tokens.last() != Some(&END) {
        assert!(tokens.len() < TOKENS_MAX, "it never ends: {tokens:?}");
        let allowed = state.allowed().unwrap();
        let token = allowed.iter().choose(&mut rng).expect("never none");
        state.accept(token).unwrap();
        tokens.push(token);
    }
    tokens
}

fn text(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let bytes = tokens.iter().filter(|token| **token != END);
    let bytes: Vec<u8> = bytes.flat_map(|token| tokenizer.token_bytes(*token)).copied().collect();
    String::from_utf8(bytes).unwrap()
}

const SCHEMA: &str = r#"start: %json {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["ab", "ab a", 7, null]}, "maxItems": 3},
        "depth": {"type": "integer", "minimum": -5, "maximum": 120}
    },
    "required": ["name", "depth"],
    "additionalProperties": false,
    "x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}
}"#;

#[test]
fn walks_end_with_what_matches() {
    let (tokenizer, compiler) = compiler();
    let check = |grammar: &str, matches: &dyn Fn(&str) -> bool| {
        let grammar = compiler.compile(grammar).unwrap();
        for seed in 0..WALKS {
            let text = text(&tokenizer, &walk(&grammar, seed));
            assert!(matches(&text), "{text:?}");
        }
    };
    check(r#"start: "yes" | "no""#, &|text| ["yes", "no"].contains(&text));
    check("start: /[a-c]{2,4}-[0-9]/", &|text| {
        let (letters, digit) = text.split_once('-').unwrap();
        (2..=4).contains(&letters.len()) && digit.len() == 1
    });
    check(SCHEMA, &|text| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let depth = value["depth"].as_i64().unwrap();
        let name = value["name"].as_str().unwrap();
        (-5..=120).contains(&depth) && name.chars().count() <= 8
    });
}

/// Whoever begins anew with the tokens so far allows the same next ones.
#[test]
fn a_state_is_a_function_of_its_tokens() {
    let (_, compiler) = compiler();
    let grammar = compiler.compile(SCHEMA).unwrap();
    for seed in 0..WALKS {
        let tokens = walk(&grammar, seed);
        let mut state = grammar.begin();
        for (index, token) in tokens.iter().enumerate() {
            let mut anew = grammar.begin();
            tokens[..index].iter().for_each(|token| anew.accept(*token).unwrap());
            assert_eq!(anew.forced(), state.forced());
            let sets = [anew.allowed(), state.allowed()].map(|set| set.unwrap());
            assert!(sets[0].iter().eq(sets[1].iter()), "after {index} tokens of {tokens:?}");
            state.accept(*token).unwrap();
        }
    }
}

#[test]
fn what_is_forced_is_all_that_is_allowed() {
    let (tokenizer, compiler) = compiler();
    let grammar = compiler.compile(r#"start: "{\"ab\": " /[a-z]/ "}""#).unwrap();
    let mut state = grammar.begin();
    let forced = state.forced();
    assert!(text(&tokenizer, &forced).starts_with("{\"ab\":"), "{forced:?}");
    for token in forced {
        assert_eq!(state.allowed().unwrap().only(), Some(token));
        state.accept(token).unwrap();
    }
    assert!(matches!(state.accept(END), Err(GrammarError::Invalid(_))));
}

#[test]
fn text_that_looks_like_a_special_token_is_none() {
    let (tokenizer, compiler) = compiler();
    let end = tokenizer.token_id("<|end|>").unwrap();
    let walked = |grammar: &str| walk(&compiler.compile(grammar).unwrap(), 1);
    assert!(!walked(r#"start: "<|end|>""#).contains(&end));
    assert_eq!(walked("start: <|end|>"), [end, END]);
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let (_, compiler) = compiler();
    let check = |grammar: &str| {
        let error = compiler.compile(grammar).map(|_| ()).unwrap_err().to_string();
        assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    };
    check("");
    check("start: nothing");
    check("start: /(/");
    check(r#"start: %json {"type": "object", "minProperties": "x"}"#);
    check(&format!("start: {:?}", "a".repeat(2 << 20)));
}

/// Each would take minutes or gigabytes, were there no limits.
#[test]
fn hostile_grammars_cost_little() {
    let (_, compiler) = compiler();
    let nested = (0..14).fold("\"a\"".to_string(), |inner, _| format!("({inner} | {inner})?"));
    let hostile = [
        "start: /(a|b|ab){1,5000}(x{1,3000}){1,3000}/".to_string(),
        "start: /((a{0,200}){0,200}){0,200}/".to_string(),
        format!("start: {nested}"),
        format!("start: /{}/", "(a?){50}".repeat(400)),
        "start: start start | start start start | \"a\" | ".to_string(),
    ];
    for grammar in hostile {
        let began = Instant::now();
        let walked = compiler.compile(&grammar).and_then(|grammar| {
            let mut state = grammar.begin();
            let mut rng = StdRng::seed_from_u64(1);
            for _ in 0..20 {
                let token = state.allowed()?.iter().choose(&mut rng).expect("never none");
                state.accept(token)?;
                if token == END || rng.random_bool(0.01) {
                    break;
                }
            }
            Ok(())
        });
        let took = began.elapsed();
        // Far above what it takes; a hang is far above this.
        assert!(took < Duration::from_secs(120), "{took:?}");
        println!("{took:?} {walked:?} {}", &grammar[..grammar.len().min(60)]);
    }
}

#[test]
fn the_latest_grammars_are_remembered() {
    let (_, compiler) = compiler();
    let text = |n: usize| format!("start: \"{n}\"");
    for n in 0..65 {
        compiler.compile(&text(n)).unwrap();
        assert!(compiler.cached(&text(0)).is_some(), "used at every turn");
    }
    assert!(compiler.cached(&text(1)).is_none());
    assert!(compiler.cached(&text(64)).is_some());
}
