//! What clients ask: chats and completions of every kind whose answer must not change.

use std::ops::Range;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Prompts and answers are this long.
#[derive(Clone, Debug)]
pub struct Lengths {
    /// Words of a usual question.
    pub short_words: Range<usize>,
    /// Words that several questions begin with.
    pub shared_words: usize,
    /// Words of a long question, whose KV blocks take a while to move.
    pub long_words: Range<usize>,
    /// Tokens of an answer, at most and mostly.
    pub answer_tokens: Range<usize>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// For reports: `logprobs-17`.
    pub name: String,
    /// Below `/v1/`.
    pub path: &'static str,
    /// The request's body.
    pub body: Value,
    /// Whether it must not find its prompt in a prefix cache, so that it is computed and moved
    /// each time: whoever sends it adds a `cache_salt` of its own.
    pub is_salted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    Plain,
    Greedy,
    Logprobs,
    Stop,
    Completion,
    SharedPrefix,
    Long,
    /// Three choices of one prompt.
    Choices,
    /// An answer that must match a schema.
    Constrained,
}

/// In turn, so that any 10 questions have all of them. Some are long: they keep blocks moving.
const FLAVOURS: [Flavour; 10] = [
    Flavour::Plain,
    Flavour::Long,
    Flavour::Logprobs,
    Flavour::SharedPrefix,
    Flavour::Greedy,
    Flavour::Long,
    Flavour::Stop,
    Flavour::Choices,
    Flavour::Completion,
    Flavour::Constrained,
];

/// Prefixes that questions share.
const SHARED_PREFIXES: u64 = 3;

const WORDS: [&str; 32] = [
    "the", "worker", "reads", "a", "block", "of", "keys", "and", "values", "while", "another",
    "computes", "what", "is", "next", "prompt", "token", "router", "gives", "each", "stream",
    "time", "memory", "how", "does", "it", "move", "between", "machines", "when", "one", "fails",
];

/// `count` questions to a model, decided by a seed.
pub fn questions(seed: u64, count: usize, model: &str, lengths: &Lengths) -> Vec<Question> {
    (0..count).map(|index| Maker::new(seed, index, lengths).make(model)).collect()
}

/// The question with a stop string, which is found in the answer it would have without.
pub fn with_stop(mut question: Question, answer: &str) -> Question {
    if let Some(stop) = stop_in(answer) {
        question.body["stop"] = json!([stop]);
    }
    question
}

impl Question {
    /// Whether it waits for its stop string; see [`with_stop`].
    pub fn wants_stop(&self) -> bool {
        self.name.starts_with("stop") && self.body.get("stop").is_none()
    }
}

/// Some characters from the last third: enough streams before them, and they cross tokens.
fn stop_in(answer: &str) -> Option<String> {
    let characters: Vec<char> = answer.chars().collect();
    let from = characters.len() * 7 / 10;
    let stop: String = characters.get(from..from + 9)?.iter().collect();
    Some(stop)
}

struct Maker<'a> {
    random: ChaCha8Rng,
    seed: u64,
    index: usize,
    flavour: Flavour,
    lengths: &'a Lengths,
}

impl<'a> Maker<'a> {
    fn new(seed: u64, index: usize, lengths: &'a Lengths) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(SHARED_PREFIXES + index as u64);
        Self { random, seed, index, flavour: FLAVOURS[index % FLAVOURS.len()], lengths }
    }

    fn make(mut self, model: &str) -> Question {
        let mut body = Map::new();
        body.insert("model".into(), json!(model));
        body.insert("stream".into(), json!(true));
        body.insert("stream_options".into(), json!({ "include_usage": true }));
        body.insert("seed".into(), json!(self.random.random_range(0..1_000_000)));
        body.insert("max_tokens".into(), json!(self.draw(self.lengths.answer_tokens.clone())));
        body.insert("ignore_eos".into(), json!(true));
        let prompt = self.prompt();
        let path = self.ask(prompt, &mut body);
        self.sample(&mut body);
        Question {
            name: format!("{:?}-{}", self.flavour, self.index).to_lowercase(),
            path,
            body: Value::Object(body),
            is_salted: self.flavour == Flavour::Long,
        }
    }

    fn ask(&self, prompt: String, body: &mut Map<String, Value>) -> &'static str {
        if self.flavour == Flavour::Completion {
            body.insert("prompt".into(), json!(prompt));
            return "completions";
        }
        body.insert("messages".into(), json!([{ "role": "user", "content": prompt }]));
        "chat/completions"
    }

    fn sample(&mut self, body: &mut Map<String, Value>) {
        let temperature = if self.flavour == Flavour::Greedy { 0.0 } else { 0.9 };
        body.insert("temperature".into(), json!(temperature));
        match self.flavour {
            Flavour::Logprobs => {
                body.insert("logprobs".into(), json!(true));
                body.insert("top_logprobs".into(), json!(self.random.random_range(1..4)));
            }
            Flavour::Completion => {
                body.insert("logprobs".into(), json!(2));
            }
            Flavour::Choices => {
                body.insert("n".into(), json!(3));
            }
            Flavour::Constrained => {
                body.insert("response_format".into(), list_of_words());
            }
            Flavour::Plain => {
                body.insert("top_p".into(), json!(0.95));
                body.insert("frequency_penalty".into(), json!(0.4));
            }
            _ => {}
        }
    }

    fn prompt(&mut self) -> String {
        match self.flavour {
            Flavour::Long => {
                let words = self.draw(self.lengths.long_words.clone());
                text(&mut self.random, words)
            }
            Flavour::SharedPrefix => {
                let mut shared = ChaCha8Rng::seed_from_u64(self.seed);
                shared.set_stream(self.random.random_range(0..SHARED_PREFIXES));
                let own = self.draw(self.lengths.short_words.clone());
                let prefix = text(&mut shared, self.lengths.shared_words);
                format!("{prefix}. {}", text(&mut self.random, own))
            }
            _ => {
                let words = self.draw(self.lengths.short_words.clone());
                text(&mut self.random, words)
            }
        }
    }

    fn draw(&mut self, range: Range<usize>) -> usize {
        self.random.random_range(range)
    }
}

/// As many entries as keep an answer going for a while; what is forced and what is free alternate.
fn list_of_words() -> Value {
    let entry = json!({ "type": "object", "required": ["name", "size"],
        "additionalProperties": false, "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "size": { "type": "integer", "minimum": 0, "maximum": 99_999 } } });
    let list = json!({ "type": "array", "items": entry, "minItems": 20, "maxItems": 20 });
    let schema = json!({ "type": "object", "properties": { "entries": list },
        "required": ["entries"], "additionalProperties": false });
    json!({ "type": "json_schema", "json_schema": { "name": "entries", "schema": schema } })
}

fn text(random: &mut ChaCha8Rng, words: usize) -> String {
    let words = (0..words).map(|_| *WORDS.choose(random).expect("there are words"));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: Lengths =
        Lengths { short_words: 3..9, shared_words: 20, long_words: 50..60, answer_tokens: 10..20 };

    fn all() -> Vec<Question> {
        questions(5, 64, "m", &LENGTHS)
    }

    #[test]
    fn a_seed_decides() {
        let bodies = |questions: Vec<Question>| -> Vec<Value> {
            questions.into_iter().map(|question| question.body).collect()
        };
        assert_eq!(bodies(all()), bodies(all()));
        assert_ne!(bodies(all()), bodies(questions(6, 64, "m", &LENGTHS)));
    }

    #[test]
    fn every_kind_is_asked() {
        #[track_caller]
        fn check(what: &str, is: impl Fn(&Value) -> bool) {
            let count = all().iter().filter(|question| is(&question.body)).count();
            assert!((6..60).contains(&count), "{count} of 64 with {what}");
        }
        check("temperature 0", |body| body["temperature"] == 0.0);
        check("chat logprobs", |body| body["logprobs"] == true);
        check("completion logprobs", |body| body["logprobs"].is_number());
        check("a prompt", |body| body.get("prompt").is_some());
        check("several choices", |body| body["n"] == 3);
        check("a schema", |body| body.get("response_format").is_some());
        check("a long prompt", |body| {
            body["messages"][0]["content"].as_str().is_some_and(|text| text.len() > 150)
        });
        assert!(all().iter().all(|question| question.body["seed"].is_number()));
        assert_eq!(all().iter().filter(|question| question.wants_stop()).count(), 6);
    }

    #[test]
    fn shared_prefixes_are_shared() {
        let mut prefixes: Vec<String> = all()
            .iter()
            .filter(|question| question.name.starts_with("sharedprefix"))
            .map(|question| {
                let content = question.body["messages"][0]["content"].as_str().unwrap();
                content.split_once('.').unwrap().0.to_string()
            })
            .collect();
        prefixes.sort();
        prefixes.dedup();
        assert_eq!(prefixes.len(), 3);
    }

    #[test]
    fn a_stop_string_is_in_the_answer() {
        let stop = all().into_iter().find(Question::wants_stop).unwrap();
        let answer = "one two three four five six seven eight nine ten";
        let stopping = with_stop(stop.clone(), answer);
        assert!(answer.contains(stopping.body["stop"][0].as_str().unwrap()));
        assert!(!stopping.wants_stop());
        assert!(with_stop(stop, "short").body.get("stop").is_none());
    }
}
