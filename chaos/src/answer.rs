//! An answer as its client has it, and how two of them differ.

use std::collections::BTreeMap;

use serde_json::Value;

/// What must be the same however the answer came about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// All text.
    pub text: String,
    /// Of each token: its text, its logprob, its alternatives.
    pub logprobs: Vec<Value>,
    /// Why it ended.
    pub finish_reason: String,
    /// Text and end of each further choice, by its index.
    pub others: BTreeMap<u64, (String, String)>,
    /// As `usage` says.
    pub prompt_tokens: u64,
    /// As `usage` says.
    pub completion_tokens: u64,
}

/// Why a stream is not an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Broken(pub String);

/// Builds an answer from a stream's events.
#[derive(Debug, Default)]
pub struct AnswerBuilder {
    answer: Answer,
    has_usage: bool,
    is_done: bool,
}

impl AnswerBuilder {
    /// Takes an event's data. True if it brought text or tokens. Errors: it is an error, or not
    /// what a stream may have here.
    pub fn event(&mut self, data: &str) -> Result<bool, Broken> {
        if self.is_done {
            return Err(Broken(format!("an event after [DONE]: {data}")));
        }
        if data == "[DONE]" {
            self.is_done = true;
            return Ok(false);
        }
        let event: Value = serde_json::from_str(data)
            .map_err(|error| Broken(format!("an event is not JSON ({error}): {data}")))?;
        if event.get("error").is_some() {
            return Err(Broken(format!("an error in the stream: {}", event["error"])));
        }
        if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
            self.has_usage = true;
            self.answer.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or_default();
            self.answer.completion_tokens = usage["completion_tokens"].as_u64().unwrap_or_default();
        }
        Ok(event["choices"].get(0).is_some_and(|choice| self.choice(choice)))
    }

    fn choice(&mut self, choice: &Value) -> bool {
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        if let Some(index) = choice["index"].as_u64().filter(|index| *index > 0) {
            let (told, end) = self.answer.others.entry(index).or_default();
            told.push_str(text.unwrap_or_default());
            end.push_str(choice["finish_reason"].as_str().unwrap_or_default());
            return text.is_some_and(|text| !text.is_empty());
        }
        self.answer.text.push_str(text.unwrap_or_default());
        let of_chat = choice["logprobs"]["content"].as_array();
        // Of a completion, the chunk's logprobs belong together; their sum over chunks is in order.
        let tokens = of_chat.map_or(0, Vec::len);
        match of_chat {
            Some(tokens) => self.answer.logprobs.extend(tokens.iter().cloned()),
            None => self.completion_logprobs(&choice["logprobs"]),
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.answer.finish_reason = reason.to_string();
        }
        tokens > 0 || text.is_some_and(|text| !text.is_empty())
    }

    /// Arrays of a completion's logprobs, one entry per token, as one value per token: how many
    /// tokens came in one chunk is not the answer's business.
    fn completion_logprobs(&mut self, logprobs: &Value) {
        let Some(tokens) = logprobs["tokens"].as_array() else { return };
        let of = |name: &str, index: usize| logprobs[name].get(index).cloned().unwrap_or_default();
        let names = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
        let one = |index: usize| Value::Array(names.iter().map(|name| of(name, index)).collect());
        self.answer.logprobs.extend((0..tokens.len()).map(one));
    }

    /// The stream has ended. Errors: it had no end of its own.
    pub fn finish(self) -> Result<Answer, Broken> {
        let missing = match (self.is_done, self.has_usage, self.answer.finish_reason.is_empty()) {
            (false, ..) => "[DONE]",
            (true, false, _) => "usage",
            (true, true, true) => "a finish reason",
            (true, true, false) => return Ok(self.answer),
        };
        let tail = self.answer.text.len();
        Err(Broken(format!("the stream ended without {missing}, after {tail} bytes of text")))
    }
}

impl Answer {
    /// How this differs from the answer that was expected, in words.
    pub fn difference(&self, expected: &Self) -> Option<String> {
        if self.text != expected.text {
            return Some(text_difference(&self.text, &expected.text));
        }
        if self.logprobs != expected.logprobs {
            return Some(logprobs_difference(&self.logprobs, &expected.logprobs));
        }
        for (index, (text, _)) in &self.others {
            let expected = expected.others.get(index).map_or("", |(text, _)| text);
            if text != expected {
                return Some(format!("choice {index}: {}", text_difference(text, expected)));
            }
        }
        if self.others != expected.others {
            return Some(format!(
                "other choices: {:?} instead of {:?}",
                self.others, expected.others
            ));
        }
        let rest = |answer: &Self| {
            (answer.finish_reason.clone(), answer.prompt_tokens, answer.completion_tokens)
        };
        (rest(self) != rest(expected)).then(|| {
            format!(
                "finish_reason, prompt_tokens, completion_tokens are {:?} instead of {:?}",
                rest(self),
                rest(expected)
            )
        })
    }
}

fn text_difference(found: &str, expected: &str) -> String {
    let common = found.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
    let after = |text: &str| -> String {
        let from = (0..=common).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text[from..].chars().take(40).collect()
    };
    format!(
        "text differs at byte {common} (of {}, expected {}): {:?} instead of {:?}",
        found.len(),
        expected.len(),
        after(found),
        after(expected)
    )
}

fn logprobs_difference(found: &[Value], expected: &[Value]) -> String {
    let common = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let at = |logprobs: &[Value]| logprobs.get(common).map_or("nothing".into(), Value::to_string);
    format!("logprobs differ at token {common}: {} instead of {}", at(found), at(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINISH: &str = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;

    fn build(events: &[&str]) -> Result<Answer, Broken> {
        let mut builder = AnswerBuilder::default();
        for event in events {
            builder.event(event)?;
        }
        builder.finish()
    }

    #[test]
    fn a_chat() {
        let answer = build(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":"a"}]}}]}"#,
            r#"{"choices":[{"delta":{"content":"b"},"logprobs":{"content":[{"token":"b"}]}}]}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"x"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#,
            FINISH,
            USAGE,
            "[DONE]",
        ]);
        let answer = answer.unwrap();
        assert_eq!((answer.text.as_str(), answer.logprobs.len()), ("ab", 2));
        assert_eq!(answer.others, BTreeMap::from([(1, ("x".into(), "length".into()))]));
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (3, 2));
        assert_eq!(answer.finish_reason, "stop");
    }

    #[test]
    fn a_completion_in_one_chunk_or_two() {
        let one = r#"{"choices":[{"text":"ab","logprobs":{"tokens":["a","b"],
            "token_logprobs":[-1,-2],"top_logprobs":[{},{}],"text_offset":[0,1]}}]}"#;
        let first = r#"{"choices":[{"text":"a","logprobs":{"tokens":["a"],
            "token_logprobs":[-1],"top_logprobs":[{}],"text_offset":[0]}}]}"#;
        let second = r#"{"choices":[{"text":"b","logprobs":{"tokens":["b"],
            "token_logprobs":[-2],"top_logprobs":[{}],"text_offset":[1]}}]}"#;
        let together = build(&[one, FINISH, USAGE, "[DONE]"]).unwrap();
        let apart = build(&[first, second, FINISH, USAGE, "[DONE]"]).unwrap();
        assert_eq!(together, apart);
        assert_eq!(together.logprobs.len(), 2);
    }

    #[test]
    fn broken_streams() {
        #[track_caller]
        fn check(events: &[&str], part: &str) {
            let Broken(reason) = build(events).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
        check(&[], "without [DONE]");
        check(&[FINISH, USAGE], "without [DONE]");
        check(&[FINISH, "[DONE]"], "without usage");
        check(&[USAGE, "[DONE]"], "without a finish reason");
        check(&["[DONE]", FINISH], "after [DONE]");
        check(&[r#"{"error":{"message":"lost"}}"#], "lost");
        check(&["{"], "not JSON");
    }

    #[test]
    fn differences() {
        #[track_caller]
        fn check(found: &Answer, expected: &Answer, part: Option<&str>) {
            let difference = found.difference(expected);
            assert_eq!(difference.is_some(), part.is_some(), "{difference:?}");
            let told = difference.unwrap_or_default();
            assert!(told.contains(part.unwrap_or_default()), "{told}");
        }
        let answer = Answer {
            text: "héllo".into(),
            logprobs: vec![Value::from(1)],
            finish_reason: "stop".into(),
            others: BTreeMap::from([(1, ("hey".into(), "length".into()))]),
            prompt_tokens: 3,
            completion_tokens: 2,
        };
        let others = |text: &str| Answer {
            others: BTreeMap::from([(1, (text.into(), "length".into()))]),
            ..answer.clone()
        };
        check(&others("hex"), &answer, Some("choice 1: text differs at byte 2"));
        check(
            &Answer { others: BTreeMap::new(), ..answer.clone() },
            &answer,
            Some("other choices"),
        );
        check(&answer, &answer, None);
        check(&Answer { text: "héxlo".into(), ..answer.clone() }, &answer, Some("at byte 3"));
        check(&Answer { text: "hèllo".into(), ..answer.clone() }, &answer, Some("at byte 2"));
        check(&Answer { text: "héllo!".into(), ..answer.clone() }, &answer, Some("at byte 6"));
        check(&Answer { logprobs: vec![], ..answer.clone() }, &answer, Some("at token 0: nothing"));
        check(&Answer { completion_tokens: 3, ..answer.clone() }, &answer, Some("3) instead of"));
    }
}
