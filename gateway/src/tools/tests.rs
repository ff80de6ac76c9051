//! What parsers make of answers, cut into pieces in every way.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use tokenizer::test_support::byte_level_tokenizer;

use super::{AnswerParser, Delta, Dialect, Thinking};
use crate::fuzz::MARKUP;

/// Templates of our own that write what those of each family write.
pub(super) const TEMPLATES: [(&str, &str); 9] = [
    ("none", "{{ messages }}"),
    ("hermes", "<tool_call>{{ call }}</tool_call>"),
    ("qwen3", "<think></think><tool_call>{{ call }}</tool_call>"),
    ("llama", r#"{"name": {{ name }}, "parameters": {{ parameters }}}<|python_tag|>"#),
    ("mistral", "[TOOL_CALLS][{{ calls }}]"),
    ("mistral-named", "[THINK][/THINK][TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}"),
    ("deepseek", "</think><｜tool▁calls▁begin｜>function```json"),
    ("harmony", "<|start|>assistant<|channel|>final<|message|>"),
    ("pythonic", "[func_name1(params_name1=params_value1)]"),
];

fn dialect(family: &str) -> Dialect {
    let template = TEMPLATES.iter().find(|(name, _)| *name == family).unwrap().1;
    Dialect::of(Some(template), &byte_level_tokenizer())
}

fn parser(family: &str) -> AnswerParser {
    dialect(family).parser(true, true).with_functions(["f", "get_weather"])
}

/// The deltas put together, without what is random.
fn joined(deltas: Vec<Delta>) -> Vec<Delta> {
    let mut all: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (all.last_mut(), delta) {
            (Some(Delta::Content(last)), Delta::Content(text))
            | (Some(Delta::Reasoning(last)), Delta::Reasoning(text))
            | (Some(Delta::Arguments { text: last, .. }), Delta::Arguments { text, .. }) => {
                last.push_str(&text);
            }
            (_, Delta::ToolCall { index, name, id }) => {
                assert!(id.len() == 29 && id.starts_with("call_"), "{id}");
                all.push(Delta::ToolCall { index, name, id: String::new() });
            }
            (_, delta) => all.push(delta),
        }
    }
    all
}

fn parse<'a>(mut parser: AnswerParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Delta> {
    let mut deltas = Vec::new();
    for piece in pieces {
        deltas.extend(parser.push(piece));
    }
    deltas.extend(parser.finish());
    assert!(deltas.iter().all(|delta| !matches!(delta, Delta::Content(text) if text.is_empty())));
    joined(deltas)
}

fn characters(text: &str) -> impl Iterator<Item = &str> {
    text.split("").filter(|piece| !piece.is_empty())
}

fn random_pieces<'a>(text: &'a str, random: &mut impl Rng) -> Vec<&'a str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let mut bytes = random.random_range(1..=rest.len().min(12));
        while !rest.is_char_boundary(bytes) {
            bytes += 1;
        }
        let (piece, after) = rest.split_at(bytes);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Deltas as lines: `text`, `(reasoning)`, `name{arguments}`.
fn lines(deltas: &[Delta]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Content(text) => lines.push(text.clone()),
            Delta::Reasoning(text) => lines.push(format!("({text})")),
            Delta::ToolCall { index, name, .. } => lines.push(format!("{index} {name} ")),
            Delta::Arguments { text, .. } => lines.last_mut().unwrap().push_str(text),
        }
    }
    lines
}

#[track_caller]
fn check_parser(new: impl Fn() -> AnswerParser, text: &str, expected: &[&str]) {
    let whole = parse(new(), [text]);
    assert_eq!(lines(&whole), expected, "{text}");
    assert_eq!(parse(new(), characters(text)), whole, "{text}");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    for _ in 0..20 {
        assert_eq!(parse(new(), random_pieces(text, &mut random)), whole, "{text}");
    }
}

#[track_caller]
fn check(family: &str, text: &str, expected: &[&str]) {
    check_parser(|| parser(family), text, expected);
}

/// Found by a fuzzer: what had come of the id was put behind what followed.
#[test]
fn an_id_without_arguments_stays_where_it_is() {
    let text = "[TOOL_CALLS]f[CALL_ID]ab. then";
    check("mistral-named", text, &["[TOOL_CALLS]f[CALL_ID]ab. then"]);
}

#[test]
fn dialects_are_found_from_templates() {
    use super::dialect::CallFormat::*;
    let formats =
        [None, Hermes, Hermes, Llama, MistralList, MistralNamed, DeepSeekV3, Harmony, Pythonic];
    for ((family, _), format) in TEMPLATES.iter().zip(formats) {
        assert_eq!(dialect(family).calls, format, "{family}");
    }
    let tokenizer = byte_level_tokenizer();
    assert_eq!(Dialect::of(Option::None, &tokenizer).calls, None);
    let v31 = Dialect::of(Some("<｜tool▁calls▁begin｜>"), &tokenizer);
    assert_eq!(v31.calls, DeepSeekV31);
}

#[test]
fn hermes() {
    check("hermes", "Hello, world.\n", &["Hello, world.\n"]);
    check(
        "hermes",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}</tool_call>\\\"é😀\"}}\n</tool_call>",
        &["0 f {\"a\": \"}</tool_call>\\\"é😀\"}"],
    );
    check(
        "hermes",
        "Let me see. \n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n\
         <tool_call>{\"arguments\": {\"b\": [1, {}]}, \"name\": \"unknown.tool\"}</tool_call>\n\nDone.",
        &["Let me see.", "0 f {}", "1 unknown.tool {\"b\": [1, {}]}", "Done."],
    );
    // Without arguments, with arguments in a string, in a list.
    check("hermes", "<tool_call>{\"name\": \"f\"}</tool_call>", &["0 f {}"]);
    check(
        "hermes",
        r#"<tool_call>{"name": "f", "arguments": "{\"a\": \"\u00e9\"}"}</tool_call>"#,
        &["0 f {\"a\": \"é\"}"],
    );
    check(
        "hermes",
        r#"<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": 1}}]</tool_call>"#,
        &["0 f {}", "1 g {\"a\": 1}"],
    );
    // What only looks like a call.
    for text in [
        "a <tool_call> b",
        "a <tool_call>{\"x\": 1}</tool_call> b",
        "<tool_call>{\"name\": 1}</tool_call>",
        "<tool_call>{\"name\": \"not a name\"}</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>",
        "<tool_call>",
        "1 <tool_c",
        "a < b <tool_calls> ",
        "<tool_call>{\"arguments\": {\"a\": 1}",
    ] {
        check("hermes", text, &[text]);
    }
    // Broken ones after that: the call stands, and what follows is found again.
    check(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1</tool_call> x",
        &["0 f {\"a\": 1", "x"],
    );
    check(
        "hermes",
        "<tool_call>oops<tool_call>{\"name\": \"f\", \"arguments\": {}}",
        &["<tool_call>oops", "0 f {}"],
    );
    // Cut off.
    check(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b",
        &["0 f {\"a\": \"b"],
    );
    check("hermes", "<tool_call>{\"name\": \"f\", \"arg", &["0 f "]);
    check(
        "hermes",
        r#"<tool_call>{"name": "f", "arguments": "{\"a\": \"\u00"#,
        &["0 f {\"a\": \""],
    );
}

#[test]
fn reasoning() {
    let thinking = |thinking| move || dialect("qwen3").parser_after(true, thinking);
    let may = thinking(Thinking::MayBegin);
    check_parser(may, "<think>\nhm </thin \n</think>\n\nYes.", &["(hm </thin)", "Yes."]);
    let may = thinking(Thinking::MayBegin);
    check_parser(may, "\n\nNo <think> here", &["\n\nNo <think> here"]);
    let may = thinking(Thinking::MayBegin);
    check_parser(may, "<think>cut off \n", &["(cut off \n)"]);
    let may = thinking(Thinking::MayBegin);
    check_parser(may, "<thin", &["<thin"]);
    let open = thinking(Thinking::Open);
    let text = "so <tool_call>?\n</think>\n<tool_call>{\"name\": \"f\"}</tool_call>";
    check_parser(open, text, &["(so <tool_call>?)", "0 f {}"]);
    let open = thinking(Thinking::Open);
    check_parser(open, "<think>again</think>x", &["(again)", "x"]);
    let absent = thinking(Thinking::Absent);
    check_parser(absent, "<think>x</think>", &["<think>x</think>"]);
    // Reasoning needs no tools, and text stays as it is without them.
    let without = || dialect("qwen3").parser(false, true);
    let text = "<think>a</think> b <tool_call>{\"name\": \"f\"}</tool_call> \n";
    check_parser(without, text, &["(a)", "b <tool_call>{\"name\": \"f\"}</tool_call> \n"]);

    let dialect = dialect("qwen3");
    for (prompt, expected) in [
        ("<|im_start|>assistant\n", Thinking::MayBegin),
        ("<|im_start|>assistant\n<think>\n", Thinking::Open),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", Thinking::Absent),
        ("what does <think> do?\nassistant\n", Thinking::MayBegin),
    ] {
        assert_eq!(dialect.thinking_after(prompt), expected, "{prompt}");
    }
}

#[test]
fn llama() {
    check("llama", r#"{"name": "f", "parameters": {"a": 1}}"#, &["0 f {\"a\": 1}"]);
    check(
        "llama",
        r#"{"type": "function", "name": "f", "parameters": {}}; {"name": "f", "parameters": {}}"#,
        &["0 f {}", "1 f {}"],
    );
    check(
        "llama",
        r#"Sure. <|python_tag|>{"name": "other", "parameters": {"q": "x"}}"#,
        &["Sure.", "0 other {\"q\": \"x\"}"],
    );
    for text in [
        r#"{"name": "Bob", "age": 7}"#,
        r#"{"answer": {"name": "f"}}"#,
        r#"{"name": "other", "parameters": {}}"#,
        r#"Text {"name": "f", "parameters": {}}"#,
        r#"<|python_tag|>print("hi")"#,
        " {",
    ] {
        check("llama", text, &[text]);
    }
    check("none", r#"{"name": "f", "arguments": {"a": 1}}"#, &["0 f {\"a\": 1}"]);
}

#[test]
fn mistral() {
    for family in ["mistral", "mistral-named"] {
        check(
            family,
            r#"[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1]}}, {"name": "g", "arguments": {}}]"#,
            &["0 f {\"a\": [1]}", "1 g {}"],
        );
        check(
            family,
            r#"Hi [TOOL_CALLS]f[ARGS]{"a": "]"}[TOOL_CALLS]g[CALL_ID]abc123[ARGS]{} bye"#,
            &["Hi", "0 f {\"a\": \"]\"}", "1 g {}", "bye"],
        );
        check(family, r#"[TOOL_CALLS]f{"a": 1}"#, &["0 f {\"a\": 1}"]);
        for text in
            ["[TOOL_CALLS]", "[TOOL_CALLS]f", "[TOOL_CALLS]f[AR", "[TOOL_CALLS]a b{}", "[TOOL"]
        {
            check(family, text, &[text]);
        }
    }
    check("mistral-named", "[THINK]a[/THINK]b", &["(a)", "b"]);
}

#[test]
fn deepseek() {
    let v3 = |calls: &str| format!("<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>");
    let one = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": \"```\"}\n```<｜tool▁call▁end｜>";
    let v31 = "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{\"b\": 2}<｜tool▁call▁end｜>";
    check("deepseek", &v3(one), &["0 f {\"a\": \"```\"}"]);
    check("deepseek", &v3(&format!("{one}\n{v31}")), &["0 f {\"a\": \"```\"}", "1 g {\"b\": 2}"]);
    check(
        "deepseek",
        &format!("<think>x</think>\n\nOk. {} y", v3(v31)),
        &["(x)", "Ok.", "0 g {\"b\": 2}", "y"],
    );
    for text in [
        "<｜tool▁calls▁begin｜>x",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>x",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n``x",
        "<｜tool▁calls",
    ] {
        check("deepseek", text, &[text]);
    }
}

#[test]
fn harmony() {
    let call = "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>\
                {\"a\": \"<|end|>\"}<|call|>";
    check(
        "harmony",
        &format!("<|channel|>analysis<|message|>Hm.<|end|>{call}"),
        &["(Hm.)", "0 f {\"a\": \"<|end|>\"}"],
    );
    check(
        "harmony",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
        &["(a)", "b"],
    );
    check(
        "harmony",
        "<|channel|>commentary<|message|>First.<|end|>\
         <|start|>assistant to=functions.g<|channel|>commentary json<|message|>{}",
        &["First.", "0 g {}"],
    );
    check("harmony", "plain", &["plain"]);
    check("harmony", "<|channel|>final", &["<|channel|>final"]);
    check("harmony", "<|channel|>analysis<|message|>cut", &["(cut)"]);
    let without = || dialect("harmony").parser(false, true);
    check_parser(without, "<|channel|>final<|message|>b", &["b"]);
}

#[test]
fn pythonic() {
    check(
        "pythonic",
        r#"[f(a=1, b='it\'s, (x)', c=[True, None, {'k': 2.5}]), get_weather()]"#,
        &[
            "0 f {\"a\": 1, \"b\": \"it's, (x)\", \"c\": [true,null,{\"k\":2.5}]}",
            "1 get_weather {}",
        ],
    );
    check(
        "pythonic",
        "<|python_start|>[f(x=open(1), y=\"\\u00e9\\n\")]<|python_end|> ok",
        &["0 f {\"x\": \"open(1)\", \"y\": \"é\\n\"}", "ok"],
    );
    for text in ["[1, 2]", "[text](url)", "[unknown(a=1)]", "[f", "[f x]", "a [f(a=1)]", "[]"] {
        check("pythonic", text, &[text]);
    }
    check("pythonic", "[f(a=1, b=", &["0 f {\"a\": 1, \"b\": "]);
    // Announced, and then no call after all: its arguments are JSON all the same.
    check("pythonic", "[f(1)]", &["0 f {}", "1)]"]);
}

#[test]
fn one_call_may_be_enough() {
    let one = || parser("hermes").with_one_call();
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n";
    check_parser(one, &call.repeat(3), &["0 f {\"a\": 1}"]);
    let mut parser = one();
    parser.push(&call.repeat(3));
    assert_eq!(parser.tool_calls(), 1);
}

/// Beside what markup is made of (`fuzz::MARKUP`).
const FRAGMENTS: [&str; 24] = [
    "a_name_that_is_far_too_long_to_be_one_but_made_of_the_right_characters_a_name_that_is_far_too_long",
    "{\"name\": \"f\", \"parameters\": {}}",
    "{\"arguments\": ",
    "\"name\"",
    ": ",
    ", ",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\"",
    "\\",
    "'",
    "f",
    "get_weather",
    "a=",
    "1",
    " ",
    "\n",
    ";",
    "<",
    "é😀",
];

fn random_text(random: &mut impl Rng) -> String {
    let fragments = random.random_range(0..24);
    let mut text = String::new();
    for _ in 0..fragments {
        let index = random.random_range(0..FRAGMENTS.len() + MARKUP.len());
        let fragment = FRAGMENTS.iter().chain(MARKUP).nth(index).unwrap();
        // Most are whole.
        let whole = random.random_range(0..8) > 0;
        let characters = fragment.chars().count();
        let taken = if whole { characters } else { random.random_range(0..=characters) };
        text.extend(fragment.chars().take(taken));
    }
    text
}

#[test]
fn pieces_make_no_difference_and_no_text_is_lost() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let dialects = TEMPLATES.map(|(family, _)| (family, dialect(family)));
    for round in 0..400 {
        let text = random_text(&mut random);
        for (family, dialect) in &dialects {
            let with_tools = round % 4 != 0;
            let thinking = [Thinking::Absent, Thinking::MayBegin, Thinking::Open][round % 3];
            let new = || {
                let parser = dialect.parser_after(with_tools, thinking);
                parser.with_functions(["f", "get_weather"])
            };
            let whole = parse(new(), [text.as_str()]);
            let pieces = random_pieces(&text, &mut random);
            assert_eq!(parse(new(), pieces), whole, "{family} {text:?}");
            assert_eq!(parse(new(), characters(&text)), whole, "{family} {text:?}");
            let is_plain =
                thinking == Thinking::Absent && !["deepseek", "harmony"].contains(family);
            let has_calls = whole.iter().any(|delta| matches!(delta, Delta::ToolCall { .. }));
            if is_plain && !has_calls {
                assert_eq!(lines(&whole).concat(), text, "{family}");
            }
        }
    }
}

#[test]
fn hostile_answers_cost_linear_time() {
    let deadline = Instant::now() + Duration::from_secs(60);
    let dialects = TEMPLATES.map(|(family, _)| (family, dialect(family)));
    for unit in [
        "<tool_call>",
        "<tool_call>{\"arguments\": ",
        "{\"name\": \"f\", \"arguments\": {\"a\": ",
        " ",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"\\u00",
        "[TOOL_CALLS]",
        "[TOOL_CALLS][",
        "[f(a=",
        "[",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<|channel|>",
        "<|start|>x<|message|>",
        "<think>",
        "<",
    ] {
        let text = unit.repeat(30_000 / unit.len());
        for (family, dialect) in &dialects {
            let new = || dialect.parser(true, true).with_functions(["f"]);
            parse(new(), [text.as_str()]);
            parse(new(), characters(&text));
            assert!(Instant::now() < deadline, "{family} {unit:?}");
        }
    }
}
