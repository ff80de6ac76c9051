//! Conversations with tools, through templates of our own with the constructs of each family's.

use serde_json::{Value, json};

use super::family_templates::{DEEPSEEK, HARMONY, HERMES, MISTRAL, PYTHONIC};
use super::{ChatTemplate, TemplateVariables};

/// As the reader of requests brings it in.
fn conversation(calls: usize) -> Vec<Value> {
    let call = |index: usize| {
        json!({ "id": format!("call_{}ABCDEFGH{index}", "x".repeat(15)), "type": "function",
            "function": { "name": "add", "arguments": { "a": index, "b": "é" } } })
    };
    let calls: Vec<_> = (0..calls).map(call).collect();
    let mut messages = vec![
        json!({ "role": "system", "content": "Be brief." }),
        json!({ "role": "user", "content": "1+?" }),
        json!({ "role": "assistant", "content": null, "reasoning_content": "hm",
            "tool_calls": calls }),
    ];
    for call in &calls {
        messages.push(json!({ "role": "tool", "content": "3", "tool_call_id": call["id"],
            "name": "add" }));
    }
    messages.push(json!({ "role": "assistant", "content": "It is 3." }));
    messages.push(json!({ "role": "user", "content": "Sure?" }));
    messages
}

fn tools() -> Vec<Value> {
    vec![json!({ "type": "function", "function": { "name": "add", "description": "Adds.",
        "parameters": { "type": "object", "required": ["a"], "properties": {
            "a": { "type": "integer" }, "b": { "enum": ["x", "y"] } } } } })]
}

fn render(source: &str, messages: &[Value], variables: &TemplateVariables) -> String {
    let [bos, eos] = ["<s>", "</s>"].map(|token| Some(token.to_owned()));
    let template = ChatTemplate::new(source.to_owned(), bos, eos).unwrap();
    template.render_with(messages, Some(&tools()), variables).unwrap()
}

#[track_caller]
fn check(source: &str, calls: usize, parts: &[&str]) {
    let text = render(source, &conversation(calls), &TemplateVariables::default());
    let mut rest = text.as_str();
    for part in parts {
        let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part}\nnot in\n{rest}"));
        rest = after;
    }
    assert_eq!(rest, "", "{text}");
}

#[test]
fn hermes() {
    let called =
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 0, \"b\": \"é\"}}\n</tool_call>";
    check(
        HERMES,
        2,
        &[
            "<|im_start|>system\nBe brief.\n\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"add\"",
            "<|im_start|>user\n1+?<|im_end|>\n<|im_start|>assistant\n",
            called,
            "\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": \"é\"}}\n</tool_call><|im_end|>\n",
            "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n",
            "<|im_start|>assistant\nIt is 3.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
        ],
    );
}

#[test]
fn mistral() {
    check(
        MISTRAL,
        2,
        &[
            "<s>[INST] 1+?[/INST][TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": 0, \"b\": \"é\"}, \"id\": \"ABCDEFGH0\"}, ",
            "\"id\": \"ABCDEFGH1\"}]</s>[TOOL_RESULTS] {\"content\": 3, \"call_id\": \"ABCDEFGH0\"}[/TOOL_RESULTS]",
            "\"call_id\": \"ABCDEFGH1\"}[/TOOL_RESULTS] It is 3.</s>[AVAILABLE_TOOLS] [{\"type\": \"function\"",
            "][/AVAILABLE_TOOLS][INST] Sure?[/INST]",
        ],
    );
}

#[test]
fn deepseek() {
    check(
        DEEPSEEK,
        2,
        &[
            "<s>Be brief.<｜User｜>1+?<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n\
             ```json\n{\"a\": 0, \"b\": \"é\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>",
            "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜>\n",
            "<｜tool▁outputs▁end｜>It is 3.<｜end▁of▁sentence｜><｜User｜>Sure?<｜Assistant｜><think>\n",
        ],
    );
}

#[test]
fn harmony() {
    check(
        HARMONY,
        1,
        &[
            "<|start|>system<|message|>Reasoning: medium\nDate: 20<|end|><|start|>developer<|message|>Be brief.",
            "type add = (_: { a: integer, b?: \"x\" | \"y\" }) => any;\n}<|end|>",
            "<|start|>user<|message|>1+?<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|>",
            "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{\"a\": 0, \"b\": \"é\"}<|call|>",
            "<|start|>functions.add to=assistant<|channel|>commentary<|message|>\"3\"<|end|>",
            "<|start|>assistant<|channel|>final<|message|>It is 3.<|end|>",
            "<|start|>user<|message|>Sure?<|end|><|start|>assistant",
        ],
    );
}

#[test]
fn pythonic() {
    check(
        PYTHONIC,
        2,
        &[
            "\"name\": \"add\"",
            "user: 1+?\nassistant: [add(a=0, b=\"é\"), add(a=1, b=\"é\")]\nipython: \"3\"\nipython: \"3\"\n",
            "assistant: It is 3.\nuser: Sure?\nassistant: ",
        ],
    );
}

#[test]
fn templates_are_told_what_requests_say() {
    let hello = [json!({ "role": "user", "content": "Hello" })];
    let variables = |others: Value| TemplateVariables {
        others: others.as_object().unwrap().clone(),
        ..TemplateVariables::default()
    };
    let no_thinking = render(HERMES, &hello, &variables(json!({ "enable_thinking": false })));
    assert!(no_thinking.ends_with("<think>\n\n</think>\n\n"), "{no_thinking}");
    let high = render(HARMONY, &hello, &variables(json!({ "reasoning_effort": "high" })));
    assert!(high.contains("Reasoning: high"), "{high}");
    let documents = Some(vec![json!({ "text": "one" }), json!({ "text": "two" })]);
    let variables =
        TemplateVariables { documents, add_generation_prompt: false, ..Default::default() };
    assert!(render(PYTHONIC, &hello, &variables).ends_with("user: Hello\none; two\n"));
    // What has a place of its own comes from there.
    let named = json!({ "messages": [], "tools": [] }).as_object().unwrap().clone();
    let variables = TemplateVariables { others: named, ..TemplateVariables::default() };
    assert!(render(HERMES, &hello, &variables).contains("Hello"));
}

#[test]
fn dialects_are_those_of_the_templates() {
    use crate::tools::Dialect;
    let tokenizer = tokenizer::test_support::byte_level_tokenizer();
    let families = [HERMES, MISTRAL, DEEPSEEK, HARMONY, PYTHONIC]
        .map(|source| Dialect::of(Some(source), &tokenizer));
    for (index, dialect) in families.iter().enumerate() {
        assert!(families[..index].iter().all(|other| other != dialect), "{dialect:?}");
        assert_ne!(*dialect, Dialect::of(None, &tokenizer));
    }
}
