//! What grammars let a model say: by texts that they take or refuse, and by random walks through them,
//! whose texts the parsers must understand.

use std::sync::Arc;

use grammar::Compiler;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tokenizer::Tokenizer;

use super::dialect::{Dialect, Thinking};
use super::output::Delta;
use super::tests::TEMPLATES;
use super::{deepseek, grammar_of, harmony, pythonic};
use crate::openai::{ApiError, ChatRequest};

const END: &str = "<end>";

/// Bytes, and the markers of all dialects as special tokens if `with_markers`.
fn tokenizer(with_markers: bool) -> Arc<Tokenizer> {
    let mut vocabulary = Map::new();
    for byte in 0..256 {
        vocabulary.insert(format!("<0x{byte:02X}>"), json!(byte));
    }
    let markers = [
        END,
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[THINK]",
        "[/THINK]",
        harmony::START,
        harmony::CHANNEL,
        harmony::MESSAGE,
        harmony::CONSTRAIN,
        harmony::END,
        deepseek::CALLS_BEGIN,
        deepseek::CALLS_END,
        deepseek::CALL_BEGIN,
        deepseek::CALL_END,
        deepseek::SEPARATOR,
        pythonic::OPEN,
    ];
    let used = if with_markers { markers.len() } else { 1 };
    let added = markers[..used].iter().enumerate().map(|(index, marker)| {
        json!({ "id": 256 + index, "content": marker, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false })
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(), "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": { "type": "ByteFallback" },
        "model": { "type": "BPE", "byte_fallback": true, "merges": [], "unk_token": null,
            "vocab": vocabulary },
    });
    Arc::new(Tokenizer::from_bytes(file.to_string().as_bytes(), 1 << 20).unwrap())
}

struct Subject {
    dialect: Dialect,
    tokenizer: Arc<Tokenizer>,
    compiler: Compiler,
}

fn subject(family: &str, with_markers: bool) -> Subject {
    let template = TEMPLATES.iter().find(|(name, _)| *name == family).unwrap().1;
    let tokenizer = tokenizer(with_markers);
    let dialect = Dialect::of(Some(template), &tokenizer);
    let end = tokenizer.token_id(END).unwrap();
    let compiler = Compiler::new(tokenizer.clone(), tokenizer.tokens(), &[end]).unwrap();
    Subject { dialect, tokenizer, compiler }
}

fn request(extra: &Value) -> ChatRequest {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }] });
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    ChatRequest::parse(&body).unwrap()
}

impl Subject {
    fn grammar(&self, extra: &Value, thinking: Thinking) -> Result<Option<String>, ApiError> {
        let request = request(extra);
        grammar_of(&request.tools, request.constraint.as_ref(), &self.dialect, thinking)
    }

    fn takes(&self, grammar: &str, text: &str) -> bool {
        let compiled = self.compiler.compile(grammar);
        let mut state = compiled.unwrap_or_else(|error| panic!("{error}\n{grammar:.3000}")).begin();
        for token in self.tokenizer.encode(text, false).unwrap() {
            if !state.allowed().unwrap().contains(token) {
                return false;
            }
            state.accept(token).unwrap();
        }
        state.allowed().unwrap().contains(self.tokenizer.token_id(END).unwrap())
    }

    /// A random text of the grammar; `None` if it does not end in time.
    fn walk(&self, grammar: &str, random: &mut impl Rng) -> Option<String> {
        let compiled = self.compiler.compile(grammar);
        let mut state = compiled.unwrap_or_else(|error| panic!("{error}\n{grammar:.3000}")).begin();
        let end = self.tokenizer.token_id(END).unwrap();
        let mut bytes = Vec::new();
        for _ in 0..4000 {
            let allowed: Vec<u32> = state.allowed().unwrap().iter().collect();
            let likely: Vec<u32> = allowed.iter().copied().filter(|id| is_likely(*id)).collect();
            let among = if likely.is_empty() || random.random_range(0..8) == 0 {
                &allowed
            } else {
                &likely
            };
            let token = *among.choose(random).unwrap();
            if token == end {
                return Some(String::from_utf8(bytes).unwrap());
            }
            bytes.extend_from_slice(self.tokenizer.token_bytes(token));
            state.accept(token).unwrap();
        }
        None
    }
}

/// Random walks through strings and free texts should end soon.
fn is_likely(id: u32) -> bool {
    id >= 256 || b"\"ab<}]), \n1-".contains(&(id as u8))
}

fn tool(name: &str, strict: bool, properties: Value, required: Value) -> Value {
    json!({ "type": "function", "function": { "name": name, "strict": strict, "parameters": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": name,
        "type": "object", "properties": properties, "required": required } } })
}

fn tools(strict: bool) -> Value {
    json!([
        tool("get_weather", strict, json!({
            "city": { "type": "string", "maxLength": 8 },
            "unit": { "enum": ["C", "F"] },
            "days": { "type": "integer", "minimum": 1, "maximum": 9 } }), json!(["city", "days"])),
        { "type": "function", "function": { "name": "now" } },
    ])
}

#[track_caller]
fn check_arguments(name: &str, arguments: &str) {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|error| {
        panic!("{error}: {name} {arguments}");
    });
    match name {
        "get_weather" => {
            assert!(arguments["city"].is_string(), "{arguments}");
            assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
            let names = ["city", "unit", "days"];
            let keys = arguments.as_object().unwrap().keys();
            assert!(keys.into_iter().all(|key| names.contains(&key.as_str())), "{arguments}");
        }
        "now" => assert_eq!(arguments, json!({})),
        other => panic!("{other}"),
    }
}

/// Names and arguments of the calls in a text; and its content.
fn parsed(subject: &Subject, thinking: Thinking, text: &str) -> (Vec<(String, String)>, String) {
    let parser = subject.dialect.parser_after(true, thinking);
    let mut parser = parser.with_functions(["get_weather", "now"]);
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    let (mut calls, mut content): (Vec<(String, String)>, String) = Default::default();
    for delta in deltas {
        match delta {
            Delta::Content(text) => content.push_str(&text),
            Delta::Reasoning(_) => {}
            Delta::ToolCall { name, .. } => calls.push((name, String::new())),
            Delta::Arguments { text, .. } => calls.last_mut().unwrap().1.push_str(&text),
        }
    }
    (calls, content)
}

#[test]
fn forced_calls_are_calls_in_each_dialect() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for (family, _) in TEMPLATES {
        for with_markers in [false, true] {
            let subject = subject(family, with_markers);
            let weather = json!({ "type": "function", "function": { "name": "get_weather" } });
            for (choice, parallel, calls_max) in
                [(json!("required"), true, 16), (json!("required"), false, 1), (weather, true, 1)]
            {
                let extra = json!({ "tools": tools(false), "tool_choice": choice,
                    "parallel_tool_calls": parallel });
                let thinking = Thinking::Absent;
                let grammar = subject.grammar(&extra, thinking).unwrap().unwrap();
                let mut ended = 0;
                for _ in 0..6 {
                    let Some(text) = subject.walk(&grammar, &mut random) else { continue };
                    ended += 1;
                    let (calls, content) = parsed(&subject, thinking, &text);
                    assert_eq!(content, "", "{family} {text}");
                    assert!((1..=calls_max).contains(&calls.len()), "{family} {text}");
                    for (name, arguments) in calls {
                        assert!(choice.is_string() || name == "get_weather");
                        check_arguments(&name, &arguments);
                    }
                }
                // Free reasoning ends by a marker that random bytes do not spell.
                let may_reason = family == "harmony" && !with_markers;
                assert!(ended >= 4 || may_reason, "{family}\n{grammar}");
            }
        }
    }
}

#[test]
fn strict_calls_are_checked_where_calls_are_free() {
    let calls = [
        (
            "hermes",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": ARGUMENTS}\n</tool_call>",
        ),
        ("llama", "{\"name\": \"get_weather\", \"parameters\": ARGUMENTS}"),
        ("mistral", "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": ARGUMENTS}]"),
        ("mistral-named", "[TOOL_CALLS]get_weather[ARGS]ARGUMENTS"),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n\
             ARGUMENTS\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            "harmony",
            "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>ARGUMENTS",
        ),
    ];
    for (family, call) in calls {
        for with_markers in [false, true] {
            let subject = subject(family, with_markers);
            let extra = json!({ "tools": tools(true) });
            let grammar = subject.grammar(&extra, Thinking::Absent).unwrap().unwrap();
            let takes = |text: &str| subject.takes(&grammar, text);
            let good = call.replace("ARGUMENTS", "{\"city\": \"Bonn\", \"days\": 2}");
            assert!(takes(&good), "{family} {good}\n{grammar}");
            let bad = call.replace("ARGUMENTS", "{\"city\": \"Bonn\"}");
            assert!(!takes(&bad), "{family}");
            assert!(!takes(&good.replace("get_weather", "get_whether")), "{family}");
            if family == "harmony" {
                let header = "<|channel|>final<|message|>";
                assert!(takes(&format!("{header}Hello <b>, {{}}")), "{family}");
                let analysis = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant";
                assert!(takes(&format!("{analysis}{good}")), "{family}");
            } else {
                assert!(takes("Hello <b>, {}"), "{family}");
            }
            if !["llama", "harmony"].contains(&family) {
                assert!(takes(&format!("Let me see.\n{good}")), "{family}");
            }
        }
    }
    // Nothing to check, so that nothing is constrained.
    let subject = subject("hermes", true);
    assert_eq!(subject.grammar(&json!({ "tools": tools(false) }), Thinking::Absent), Ok(None));
    let allowed = json!({ "type": "allowed_tools", "mode": "auto",
        "tools": [{ "type": "function", "name": "now" }] });
    let extra = json!({ "tools": tools(false), "tool_choice": allowed });
    let grammar = subject.grammar(&extra, Thinking::Absent).unwrap().unwrap();
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    assert!(subject.takes(&grammar, call));
    assert!(!subject.takes(&grammar, &call.replace("now", "get_weather")));
}

#[test]
fn constrained_answers_come_after_reasoning_and_beside_calls() {
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema":
        { "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] } } });
    let json = "{\"a\": 1}";
    for with_markers in [false, true] {
        let qwen = subject("qwen3", with_markers);
        let extra = json!({ "response_format": format });
        for (thinking, text, expected) in [
            (Thinking::Absent, json.to_owned(), true),
            (Thinking::MayBegin, json.to_owned(), true),
            (Thinking::MayBegin, format!("<think>\nhm {{\n</think>\n\n{json}"), true),
            (Thinking::Open, format!("hm</think>{json}"), true),
            (Thinking::Open, json.to_owned(), false),
            (Thinking::Absent, format!("<think></think>{json}"), false),
            (Thinking::MayBegin, "hm".to_owned(), false),
        ] {
            let grammar = qwen.grammar(&extra, thinking).unwrap().unwrap();
            assert_eq!(qwen.takes(&grammar, &text), expected, "{thinking:?} {text}\n{grammar}");
        }
        let extra = json!({ "response_format": format, "tools": tools(false) });
        let grammar = qwen.grammar(&extra, Thinking::Absent).unwrap().unwrap();
        assert!(qwen.takes(&grammar, json));
        let call =
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"x\": [1]}}\n</tool_call>";
        assert!(qwen.takes(&grammar, call), "{grammar}");
        assert!(!qwen.takes(&grammar, "text"));

        let harmony = subject("harmony", with_markers);
        let grammar = harmony.grammar(&extra, Thinking::Absent).unwrap().unwrap();
        assert!(
            harmony.takes(&grammar, &format!("<|channel|>final<|message|>{json}")),
            "{grammar}"
        );
        assert!(!harmony.takes(&grammar, "<|channel|>final<|message|>text"));
    }
}

#[test]
fn constraints_take_what_they_say() {
    let subject = subject("none", false);
    let check = |extra: Value, good: &[&str], bad: &[&str]| {
        let grammar = subject.grammar(&extra, Thinking::Absent).unwrap().unwrap();
        for text in good {
            assert!(subject.takes(&grammar, text), "{extra} {text}");
        }
        for text in bad {
            assert!(!subject.takes(&grammar, text), "{extra} {text}");
        }
    };
    check(
        json!({ "response_format": { "type": "json_object" } }),
        &["{}", "{\"a\": [1, {\"b\": null}], \"c\": -1.5}"],
        &["[]", "{\"a\":1}", "{ }", "x", "{\"a\": 1,\"b\": 2}"],
    );
    check(json!({ "guided_regex": "^[a-z]+/\\d$" }), &["ab/1"], &["ab/", "AB/1", "^ab/1$"]);
    check(json!({ "guided_choice": ["yes", "n\"o\n"] }), &["yes", "n\"o\n"], &["no", "yesyes", ""]);
    check(json!({ "guided_grammar": "start: \"a\"+ b\nb: /[xy]/" }), &["aax"], &["x", "aa"]);
    let schema = |schema: Value| json!({ "guided_json": schema });
    check(
        schema(json!({ "type": "object", "required": ["k"], "properties": {
            "k": { "$ref": "#/$defs/kind" }, "n": { "type": ["integer", "null"] },
            "x": { "oneOf": [{ "type": "number" }, { "type": "integer" }] } },
            "$defs": { "kind": { "enum": ["a", "b"], "title": "Kind" } } })),
        &["{\"k\": \"a\"}", "{\"k\": \"b\", \"n\": null, \"x\": 0.5}", "{\"k\": \"a\", \"n\": -7}"],
        &["{\"n\": 1}", "{\"k\": \"c\"}", "{\"k\": \"a\", \"z\": 1}", "{\"n\": 1, \"k\": \"a\"}"],
    );
    let digits = "9".repeat(40);
    check(
        schema(json!({ "type": "integer" })),
        &["0", "-12", "9007199254740991"],
        &[&digits, "1.5"],
    );
    check(
        schema(json!({ "type": "number" })),
        &["0", "-12", "3.14159265", "0.000001", "999999999999999"],
        &[&digits, &format!("0.{digits}"), "01"],
    );
    check(schema(json!({ "type": "number", "minimum": 0.5 })), &["0.5", "7.25"], &["0.4", &digits]);
    check(
        schema(json!({ "type": "string", "format": "email", "maxLength": 20 })),
        &["\"a@b.de\""],
        &["\"a\"", "\"aaaaaaaaaaaaaaaaaaaa@b.de\""],
    );
    check(
        schema(json!({ "type": "string", "format": "date-time" })),
        &["\"2026-01-02T03:04:05Z\""],
        &["\"x\""],
    );
    check(schema(json!({ "type": "string", "format": "color" })), &["\"red\""], &["red"]);
    check(schema(json!(true)), &["1", "[]", "\"a\""], &["x"]);
    let tree = json!({ "type": "object", "properties": { "children":
        { "type": "array", "items": { "$ref": "#" }, "maxItems": 2 } }, "required": ["children"] });
    check(
        schema(tree),
        &["{\"children\": [{\"children\": []}, {\"children\": []}]}"],
        &["{\"children\": [1]}"],
    );
}

#[test]
fn refuses_what_cannot_be_followed() {
    let subject = subject("hermes", true);
    let check = |extra: Value, param: &str, code: &str, part: &str| {
        let error = subject.grammar(&extra, Thinking::Absent).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{error}");
        assert_eq!(error.code.as_deref(), Some(code), "{error}");
        assert!(error.message.contains(part), "{error}");
    };
    let not = || json!({ "properties": { "a": { "not": { "type": "null" } } } });
    check(
        json!({ "response_format": { "type": "json_schema",
            "json_schema": { "name": "n", "schema": not() } } }),
        "response_format.json_schema.schema",
        "invalid_json_schema",
        "'properties.a.not' is not supported",
    );
    let function = json!([{ "type": "function", "function":
        { "name": "f", "strict": true, "parameters": not() } }]);
    check(
        json!({ "tools": function }),
        "tools[0].function.parameters",
        "invalid_function_parameters",
        "'f': 'properties.a.not' is not supported",
    );
    let together = |extra: Value| {
        let mut extra = extra;
        extra["tools"] = tools(false);
        extra
    };
    let required = together(json!({ "guided_regex": "a", "tool_choice": "required" }));
    check(required, "guided_regex", "invalid_value", "not allowed");
    let auto = together(json!({ "guided_grammar": "start: \"a\"" }));
    check(auto, "guided_grammar", "invalid_value", "not allowed");
}
