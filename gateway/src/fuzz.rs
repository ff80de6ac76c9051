//! What fuzzers call: each function takes arbitrary bytes, and panics where a promise is broken.

use std::sync::{Arc, LazyLock};

use grammar::Compiler;
use serde_json::Value;
use tokenizer::Tokenizer;
use tokenizer::test_support::byte_level_tokenizer;

use crate::openai::{
    ChatRequest, ChatStream, CompletionRequest, Head, StreamOptions, TokenizeRequest, Usage,
};
use crate::text::family_templates::{DEEPSEEK, HARMONY, HERMES, MISTRAL, PYTHONIC};
use crate::text::{ChatTemplate, Detokenizer, StopMatcher};
use crate::tools::{AnswerParser, Delta, Dialect, Thinking, grammar_of};

const LLAMA: &str = r#"<|python_tag|>{"name": {{ name }}, "parameters": {{ parameters }}}"#;
const MISTRAL_NAMED: &str = "[THINK][/THINK][TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}";
const DEEPSEEK_V31: &str = "<think></think><｜tool▁calls▁begin｜>";

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(byte_level_tokenizer()));

static DIALECTS: LazyLock<Vec<Dialect>> = LazyLock::new(|| {
    let sources =
        [HERMES, MISTRAL, DEEPSEEK, HARMONY, PYTHONIC, LLAMA, MISTRAL_NAMED, DEEPSEEK_V31, ""];
    sources.iter().map(|source| Dialect::of(Some(source), &TOKENIZER)).collect()
});

static COMPILER: LazyLock<Compiler> = LazyLock::new(|| {
    let end = TOKENIZER.token_id("<|end|>").expect("the tokenizer has it");
    Compiler::new(TOKENIZER.clone(), TOKENIZER.tokens(), &[end]).expect("a usable vocabulary")
});

static TEMPLATES: LazyLock<Vec<ChatTemplate>> = LazyLock::new(|| {
    let [bos, eos] = ["<s>", "</s>"].map(|token| Some(token.to_owned()));
    let template = |source: &str| {
        ChatTemplate::new(source.to_owned(), bos.clone(), eos.clone()).expect("it parses")
    };
    [HERMES, MISTRAL, DEEPSEEK, HARMONY, PYTHONIC].map(template).into()
});

/// What answers are made of, so that a fuzzer need not guess it.
pub(crate) const MARKUP: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "function",
    "```json\n",
    "```",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "assistant",
    "analysis",
    "final",
    "commentary to=functions.f ",
    "<|python_start|>",
    "<|python_end|>",
    "{\"name\": \"f\", \"arguments\": ",
    "\"parameters\": {}}",
    "{\"a\": [1, \"}\"]}",
    "[f(a=",
    "True",
    "😀",
    "\\u00e9",
    "｜",
    "▁",
];

/// What requests are made of.
const JSON: &[&str] = &[
    "\"messages\":",
    "\"prompt\":",
    "\"model\":\"m\"",
    "{\"role\":\"user\",\"content\":\"x\"}",
    "\"role\":",
    "\"content\":",
    "\"tool_calls\":",
    "\"tool_call_id\":",
    "\"function_call\":",
    "\"assistant\"",
    "\"tool\"",
    "\"tools\":",
    "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":",
    "\"tool_choice\":",
    "\"required\"",
    "\"response_format\":",
    "{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"schema\":",
    "\"guided_json\":",
    "\"guided_regex\":",
    "\"guided_grammar\":",
    "\"guided_choice\":",
    "\"structured_outputs\":",
    "\"$ref\":\"#\"",
    "\"$defs\":",
    "\"properties\":",
    "\"items\":",
    "\"anyOf\":",
    "\"allOf\":",
    "\"enum\":",
    "\"pattern\":",
    "\"type\":",
    "\"object\"",
    "\"integer\"",
    "\"number\"",
    "\"minimum\":",
    "\"maxLength\":",
    "\"multipleOf\":",
    "\"format\":",
    "\"additionalProperties\":",
    "\"chat_template_kwargs\":",
    "\"stop\":",
    "\"logit_bias\":",
    "\"stream_options\":",
    "null",
    "true",
    "1e308",
    "-1",
    "\"a\"",
    "{}",
    "[]",
    "\"strict\":true",
    "\"functions\":",
];

/// ASCII is itself, other bytes are fragments.
fn spelled(data: &[u8], fragments: &[&str]) -> String {
    let mut text = String::new();
    for byte in data {
        match byte {
            0..128 => text.push(char::from(*byte)),
            _ => text.push_str(fragments[usize::from(byte - 128) % fragments.len()]),
        }
    }
    text
}

/// The text in pieces of the lengths that `lengths` says, over and over.
fn pieces<'a>(text: &'a str, lengths: &[u8]) -> Vec<&'a str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    let mut lengths = lengths.iter().cycle();
    while !rest.is_empty() {
        let length = usize::from(lengths.next().copied().unwrap_or(1)) % 24 + 1;
        let bytes = rest.ceil_char_boundary(length.min(rest.len()));
        let (piece, after) = rest.split_at(bytes);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn parsed<'a>(mut parser: AnswerParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Delta> {
    let mut deltas: Vec<Delta> = Vec::new();
    let mut all = Vec::new();
    for piece in pieces {
        all.extend(parser.push(piece));
    }
    all.extend(parser.finish());
    for delta in all {
        match (deltas.last_mut(), delta) {
            (Some(Delta::Content(last)), Delta::Content(text))
            | (Some(Delta::Reasoning(last)), Delta::Reasoning(text))
            | (Some(Delta::Arguments { text: last, .. }), Delta::Arguments { text, .. }) => {
                last.push_str(&text);
            }
            // Ids are random.
            (_, Delta::ToolCall { index, name, .. }) => {
                deltas.push(Delta::ToolCall { index, name, id: String::new() });
            }
            (_, delta) => deltas.push(delta),
        }
    }
    deltas
}

/// However an answer is cut into pieces, it has the same parts.
pub fn answers(data: &[u8]) {
    let [kind, first, second, text @ ..] = data else { return };
    let text = spelled(text, MARKUP);
    let dialect = &DIALECTS[usize::from(*kind) % DIALECTS.len()];
    let thinking = [Thinking::Absent, Thinking::MayBegin, Thinking::Open][usize::from(*first) % 3];
    let new = || {
        let parser = dialect.parser_after(first & 64 == 0, thinking).with_functions(["f", "g"]);
        if first & 128 == 0 { parser } else { parser.with_one_call() }
    };
    let whole = parsed(new(), [text.as_str()]);
    assert_eq!(parsed(new(), pieces(&text, &[*first, *second])), whole, "{text:?}");
    assert_eq!(parsed(new(), pieces(&text, &[0])), whole, "{text:?}");
}

/// A body is a request or an error of the client's; what it constrains compiles, or not.
pub fn requests(data: &[u8]) {
    let text = spelled(data, JSON);
    for text in [text.clone(), format!("{{\"model\":\"m\",{text}}}"), with_message(&text)] {
        let Ok(body) = serde_json::from_str::<Value>(&text) else { continue };
        let errors = [
            CompletionRequest::parse(&body).err(),
            TokenizeRequest::parse(&body).err(),
            constrained(&body, data.len()).err(),
        ];
        for error in errors.into_iter().flatten() {
            assert!(error.status.is_client_error(), "{error}");
        }
    }
}

fn with_message(text: &str) -> String {
    format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],{text}}}")
}

fn constrained(body: &Value, kind: usize) -> Result<(), crate::openai::ApiError> {
    let request = ChatRequest::parse(body)?;
    let dialect = &DIALECTS[kind % DIALECTS.len()];
    let thinking = dialect.thinking_after("");
    let grammar = grammar_of(&request.tools, request.constraint.as_ref(), dialect, thinking)?;
    if let Some(grammar) = grammar {
        let _refused = COMPILER.compile(&grammar).err();
    }
    Ok(())
}

/// Templates render what requests contain, or refuse it.
pub fn conversations(data: &[u8]) {
    let text = spelled(data, JSON);
    for body in
        [text.clone(), with_message(&text), format!("{{\"model\":\"m\",\"messages\":[{text}]}}")]
    {
        let body = serde_json::from_str(&body).ok();
        let Some(request) = body.and_then(|body: Value| ChatRequest::parse(&body).ok()) else {
            continue;
        };
        let tools = request.tools.for_template();
        for template in TEMPLATES.iter() {
            let _prompt =
                template.render_with(&request.messages, tools.as_deref(), &request.variables);
        }
    }
    // A template comes from a model's files, which may be broken.
    if let Ok(template) = ChatTemplate::new(text, None, None) {
        let _prompt = template.render(&[serde_json::json!({"role": "user", "content": "x"})], None);
    }
}

/// Tokens become the text that they spell, up to a stop string and no part of it.
pub fn tokens(data: &[u8]) {
    let tokenizer = &*TOKENIZER;
    let [stop, data @ ..] = data else { return };
    let stop = char::from(stop & 127).to_string().repeat(usize::from(stop >> 6) + 1);
    let mut matcher = StopMatcher::new(vec![stop.clone()]);
    let (mut detokenizer, mut bytes) = (Detokenizer::default(), Vec::new());
    let (mut text, mut shown, mut stopped) = (String::new(), String::new(), false);
    for pair in data.chunks(2) {
        // Most ids are bytes; the last few are longer tokens.
        let id = match pair {
            [255, id] => u32::from(*id) + 256,
            [id, ..] => u32::from(*id),
            [] => continue,
        };
        if !tokenizer.is_special(id) {
            bytes.extend_from_slice(tokenizer.token_bytes(id));
        }
        let piece = detokenizer.push(tokenizer, id, false);
        text.push_str(&piece);
        let matched = matcher.push(&piece);
        shown.push_str(&matched.emit);
        stopped = matched.stopped;
        assert!(!shown.contains(&stop), "{shown:?}");
    }
    let whole = String::from_utf8_lossy(&bytes);
    assert!(whole.starts_with(&text), "{whole:?} {text:?}");
    shown.push_str(&matcher.finish());
    let expected = text.split_once(&stop).map_or(text.as_str(), |(before, _)| before);
    assert_eq!(shown, expected);
    assert_eq!(stopped, text.contains(&stop));
}

/// A stream's events are JSON, one per line, and add up to the answer.
pub fn events(data: &[u8]) {
    let [kind, length, text @ ..] = data else { return };
    // As many events as may be read again within a moment.
    let text: String = spelled(text, MARKUP).chars().take(1000).collect();
    // Each event repeats it.
    let name: String = text.chars().take(8).collect();
    let head = Head {
        id: "chatcmpl-1".into(),
        created_s: 1,
        model: name.clone(),
        system_fingerprint: name,
    };
    let options =
        StreamOptions { include_usage: kind & 1 > 0, continuous_usage_stats: kind & 2 > 0 };
    let stream = ChatStream::new(&head, options, kind & 4 > 0);
    let dialect = &DIALECTS[usize::from(*length) % DIALECTS.len()];
    let mut parser = dialect.parser(kind & 8 > 0, kind & 16 > 0).with_functions(["f"]);
    let (mut out, mut content, usage) = (Vec::new(), String::new(), Usage::default());
    let mut deltas = Vec::new();
    for piece in pieces(&text, &[*length]) {
        deltas.extend(parser.push(piece));
    }
    deltas.extend(parser.finish());
    stream.role(&mut out, 0, usage);
    for delta in &deltas {
        if let Delta::Content(text) = delta {
            content.push_str(text);
        }
        stream.delta(&mut out, 0, delta, None, usage);
    }
    stream.finish(&mut out, 0, "stop", usage);
    stream.usage(&mut out, usage);
    check_events(&out, &content);
}

fn check_events(out: &[u8], content: &str) {
    let out = std::str::from_utf8(out).expect("events are text");
    let mut told = String::new();
    for event in out.split_terminator("\n\n") {
        let data = event.strip_prefix("data: ").expect("each event is data");
        assert!(!data.contains(['\n', '\r']), "{data}");
        let chunk: Value = serde_json::from_str(data).expect("data is JSON");
        told.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    assert_eq!(told, content);
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn random_bytes_break_no_promise() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(11);
        for _ in 0..1500 {
            let length = random.random_range(0..60);
            let data: Vec<u8> = (0..length).map(|_| random.random()).collect();
            for target in [answers, requests, conversations, tokens, events] {
                target(&data);
            }
        }
    }
}
