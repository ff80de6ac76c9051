//! What chat and text completions share: how to sample, when to stop, and what to send back.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, decimal, integer, wrong_type};

const N_MAX: i64 = 128;
const BEST_OF_MAX: i64 = 20;
const STOP_MAX: usize = 4;
const STOP_TOKEN_IDS_MAX: usize = 256;
const LOGIT_BIAS_MAX: usize = 1024;
const CHAT_LOGPROBS_MAX: i64 = 20;
const COMPLETION_LOGPROBS_MAX: i64 = 5;
const CACHE_SALT_BYTES_MAX: usize = 256;

/// A validated request, apart from its prompt. Absent fields have OpenAI's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    pub model: String,
    /// Choices to answer with.
    pub n: u32,
    /// Choices to generate, of which the likeliest `n` are answered with.
    pub best_of: u32,
    /// The choices begin with their prompt.
    pub echo: bool,
    /// `None`: the endpoint's default.
    pub max_tokens: Option<u32>,
    pub min_tokens: u32,
    pub temperature: f32,
    pub top_p: f32,
    /// 0 means off.
    pub top_k: u32,
    pub min_p: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: f32,
    /// Token id and what is added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<i64>,
    /// At most four, none of them empty.
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    /// Number of alternatives to report beside each token; `None` reports no logprobs at all.
    pub logprobs: Option<u32>,
    /// `None` means that the answer is sent whole.
    pub stream: Option<StreamOptions>,
    /// Requests with different salts do not share cached prefixes.
    pub cache_salt: Option<String>,
    /// Requests of lower values are computed first where they wait for each other.
    pub priority: i32,
}

/// When a stream reports usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// One more chunk at the end carries the usage.
    pub include_usage: bool,
    /// With `include_usage`: every chunk carries the usage so far.
    pub continuous_usage_stats: bool,
}

impl Parameters {
    pub(super) fn of_chat(fields: &Fields) -> Result<Parameters, ApiError> {
        // Read both, so that the one that loses is validated as well.
        let max_tokens = fields.count("max_tokens", 1)?;
        let max_completion_tokens = fields.count("max_completion_tokens", 1)?;
        let max_tokens = max_completion_tokens.or(max_tokens);
        let n = choices(fields)?;
        let shape = Shape { n, best_of: n, echo: false };
        Parameters::parse(fields, max_tokens, chat_logprobs(fields)?, shape)
    }

    pub(super) fn of_completion(fields: &Fields) -> Result<Parameters, ApiError> {
        let max_tokens = fields.count("max_tokens", 0)?;
        let logprobs = fields.integer("logprobs", 0..=COMPLETION_LOGPROBS_MAX)?;
        let n = choices(fields)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let shape = Shape { n, best_of: best_of(fields, n)?, echo };
        Parameters::parse(fields, max_tokens, logprobs.map(|count| count as u32), shape)
    }

    fn parse(
        fields: &Fields,
        max_tokens: Option<u32>,
        logprobs: Option<u32>,
        shape: Shape,
    ) -> Result<Parameters, ApiError> {
        let Shape { n, best_of, echo } = shape;
        let penalty = |name| fields.decimal(name, -2.0..=2.0).map(Option::unwrap_or_default);
        Ok(Parameters {
            model: fields.require_string("model")?.to_owned(),
            n,
            best_of,
            echo,
            max_tokens,
            min_tokens: min_tokens(fields, max_tokens)?,
            temperature: fields.decimal("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            top_p: fields.decimal("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            top_k: top_k(fields)?,
            min_p: fields.decimal("min_p", 0.0..=1.0)?.unwrap_or(0.0),
            presence_penalty: penalty("presence_penalty")?,
            frequency_penalty: penalty("frequency_penalty")?,
            // The logits are divided by it, so it stays away from zero.
            repetition_penalty: fields.decimal("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
            logit_bias: logit_bias(fields)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            stop: stop(fields)?,
            stop_token_ids: stop_token_ids(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            logprobs,
            stream: stream(fields)?,
            cache_salt: cache_salt(fields)?,
            priority: priority(fields)?,
        })
    }
}

/// How many choices there are, and what they begin with.
struct Shape {
    n: u32,
    best_of: u32,
    echo: bool,
}

fn choices(fields: &Fields) -> Result<u32, ApiError> {
    Ok(fields.integer("n", 1..=N_MAX)?.unwrap_or(1) as u32)
}

/// 0 is what some clients send for "as many as `n`".
fn best_of(fields: &Fields, n: u32) -> Result<u32, ApiError> {
    let best_of = match fields.integer("best_of", 0..=BEST_OF_MAX)? {
        None | Some(0) => return Ok(n),
        Some(best_of) => best_of as u32,
    };
    if best_of < n {
        return Err(ApiError::below_minimum("best_of", "integer", n, best_of));
    }
    if best_of > n && fields.boolean("stream")?.unwrap_or(false) {
        let message = "'best_of' above 'n' cannot be streamed: which choices are the best is known \
                       only when all have ended.";
        return Err(ApiError::invalid_value("best_of", message));
    }
    Ok(best_of)
}

fn chat_logprobs(fields: &Fields) -> Result<Option<u32>, ApiError> {
    let enabled = fields.boolean("logprobs")?.unwrap_or(false);
    let alternatives = fields.integer("top_logprobs", 0..=CHAT_LOGPROBS_MAX)?;
    match (enabled, alternatives) {
        (true, alternatives) => Ok(Some(alternatives.unwrap_or(0) as u32)),
        // Several clients send 0 for "off".
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(only_with("top_logprobs", "logprobs")),
    }
}

fn min_tokens(fields: &Fields, max_tokens: Option<u32>) -> Result<u32, ApiError> {
    let maximum = i64::from(max_tokens.unwrap_or(u32::MAX));
    Ok(fields.integer("min_tokens", 0..=maximum)?.unwrap_or(0) as u32)
}

/// Both 0 and -1 mean off in the field; here only 0 does.
fn top_k(fields: &Fields) -> Result<u32, ApiError> {
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0);
    Ok(u32::try_from(top_k).unwrap_or(0))
}

fn logit_bias(fields: &Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let entries = biases.entries();
    if entries.len() > LOGIT_BIAS_MAX {
        return Err(ApiError::object_too_large("logit_bias", LOGIT_BIAS_MAX, entries.len()));
    }
    let read = |(key, bias): (&String, &Value)| {
        let token_id = logit_bias_token(key)?;
        Ok((token_id, decimal(bias, -100.0..=100.0, || biases.path(key))?))
    };
    entries.map(read).collect()
}

fn logit_bias_token(key: &str) -> Result<u32, ApiError> {
    // `u32::from_str` alone would take a leading `+`.
    let digits = Some(key).filter(|key| key.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
        let message = format!("Invalid key in 'logit_bias': '{key}'. Expected a decimal token id.");
        ApiError::invalid_value("logit_bias", message)
    })
}

fn stop(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let stop = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) if items.len() > STOP_MAX => {
            return Err(ApiError::array_too_long("stop", STOP_MAX, items.len()));
        }
        Some(Value::Array(items)) => strings(items, "stop")?,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", other)),
    };
    if stop.iter().any(String::is_empty) {
        let message = "Invalid 'stop': a stop sequence cannot be an empty string.";
        return Err(ApiError::invalid_value("stop", message));
    }
    Ok(stop)
}

fn strings(items: &[Value], path: &str) -> Result<Vec<String>, ApiError> {
    let read = |(index, item): (usize, &Value)| match item {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong_type(&format!("{path}[{index}]"), "a string", other)),
    };
    items.iter().enumerate().map(read).collect()
}

fn stop_token_ids(fields: &Fields) -> Result<Vec<u32>, ApiError> {
    let items = fields.array("stop_token_ids")?.map_or(&[][..], Vec::as_slice);
    if items.len() > STOP_TOKEN_IDS_MAX {
        return Err(ApiError::array_too_long("stop_token_ids", STOP_TOKEN_IDS_MAX, items.len()));
    }
    token_ids(items, "stop_token_ids")
}

/// Token ids as JSON integers; whether the vocabulary has them is the caller's to check.
pub(super) fn token_ids(items: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    let read = |(index, item): (usize, &Value)| {
        let id = integer(item, 0..=i64::from(u32::MAX), || format!("{path}[{index}]"))?;
        Ok(u32::try_from(id).expect("the range is that of u32"))
    };
    items.iter().enumerate().map(read).collect()
}

fn stream(fields: &Fields) -> Result<Option<StreamOptions>, ApiError> {
    let enabled = fields.boolean("stream")?.unwrap_or(false);
    match (enabled, fields.object("stream_options")?) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(only_with("stream_options", "stream")),
        (true, None) => Ok(Some(StreamOptions::default())),
        (true, Some(options)) => Ok(Some(StreamOptions {
            include_usage: options.boolean("include_usage")?.unwrap_or(false),
            continuous_usage_stats: options.boolean("continuous_usage_stats")?.unwrap_or(false),
        })),
    }
}

fn cache_salt(fields: &Fields) -> Result<Option<String>, ApiError> {
    match fields.string("cache_salt")? {
        Some("") => {
            let message = "Invalid 'cache_salt': it cannot be an empty string.";
            Err(ApiError::invalid_value("cache_salt", message))
        }
        Some(salt) if salt.len() > CACHE_SALT_BYTES_MAX => {
            let (bytes, message) = (salt.len(), "Invalid 'cache_salt': string too long.");
            let message = format!(
                "{message} Expected at most {CACHE_SALT_BYTES_MAX} bytes, but got {bytes} instead."
            );
            Err(ApiError::invalid_value("cache_salt", message))
        }
        salt => Ok(salt.map(str::to_owned)),
    }
}

fn priority(fields: &Fields) -> Result<i32, ApiError> {
    let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?;
    Ok(priority.map_or(0, |priority| priority as i32))
}

fn only_with(param: &str, other: &str) -> ApiError {
    let message = format!("The '{param}' parameter is only allowed when '{other}' is enabled.");
    ApiError::invalid_value(param, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(chat: bool, extra: &Value) -> Result<Parameters, ApiError> {
        let mut body = json!({ "model": "m" });
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        let fields = Fields::of_body(&body)?;
        if chat { Parameters::of_chat(&fields) } else { Parameters::of_completion(&fields) }
    }

    fn defaults() -> Parameters {
        parse(true, &json!({})).unwrap()
    }

    #[test]
    fn absent_and_null_fields_have_defaults() {
        let expected = Parameters {
            model: "m".into(),
            n: 1,
            best_of: 1,
            echo: false,
            max_tokens: None,
            min_tokens: 0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: vec![],
            seed: None,
            stop: vec![],
            stop_token_ids: vec![],
            ignore_eos: false,
            logprobs: None,
            stream: None,
            cache_salt: None,
            priority: 0,
        };
        assert_eq!(defaults(), expected);
        let nulls = json!({
            "max_tokens": null, "temperature": null, "stop": null, "logit_bias": null,
            "stream": null, "stream_options": null, "logprobs": null, "top_logprobs": null,
        });
        assert_eq!(parse(true, &nulls).unwrap(), expected);
        assert_eq!(parse(false, &json!({})).unwrap(), expected);
    }

    #[test]
    fn reads_what_is_there() {
        #[track_caller]
        fn check(chat: bool, extra: Value, change: impl Fn(&mut Parameters)) {
            let mut expected = parse(chat, &json!({})).unwrap();
            change(&mut expected);
            assert_eq!(parse(chat, &extra).unwrap(), expected, "{extra}");
        }
        check(true, json!({ "max_tokens": 7 }), |p| p.max_tokens = Some(7));
        check(true, json!({ "max_tokens": 7, "max_completion_tokens": 9 }), |p| {
            p.max_tokens = Some(9);
        });
        check(false, json!({ "max_tokens": 0 }), |p| p.max_tokens = Some(0));
        check(true, json!({ "n": 3, "best_of": 2 }), |p| (p.n, p.best_of) = (3, 3));
        check(false, json!({ "n": 2, "best_of": 0 }), |p| (p.n, p.best_of) = (2, 2));
        check(false, json!({ "n": 2, "best_of": 5 }), |p| (p.n, p.best_of) = (2, 5));
        check(false, json!({ "best_of": 1, "stream": true }), |p| {
            p.stream = Some(StreamOptions::default());
        });
        check(false, json!({ "echo": true }), |p| p.echo = true);
        check(true, json!({ "top_k": -1 }), |p| p.top_k = 0);
        check(true, json!({ "top_k": 40.0 }), |p| p.top_k = 40);
        check(true, json!({ "seed": i64::MIN }), |p| p.seed = Some(i64::MIN));
        check(true, json!({ "priority": -3 }), |p| p.priority = -3);
        check(true, json!({ "logit_bias": { "50": -100, "7": 0.5 } }), |p| {
            p.logit_bias = vec![(50, -100.0), (7, 0.5)];
        });
        check(true, json!({ "stop": "a" }), |p| p.stop = vec!["a".into()]);
        check(true, json!({ "stop": ["a", "b"] }), |p| p.stop = vec!["a".into(), "b".into()]);
        check(true, json!({ "stop_token_ids": [3] }), |p| p.stop_token_ids = vec![3]);
        check(true, json!({ "ignore_eos": true }), |p| p.ignore_eos = true);
        check(true, json!({ "logprobs": true }), |p| p.logprobs = Some(0));
        check(true, json!({ "logprobs": true, "top_logprobs": 20 }), |p| p.logprobs = Some(20));
        check(true, json!({ "logprobs": false, "top_logprobs": 0 }), |_| {});
        check(false, json!({ "logprobs": 5 }), |p| p.logprobs = Some(5));
        check(true, json!({ "stream": true }), |p| p.stream = Some(StreamOptions::default()));
        check(true, json!({ "stream": true, "stream_options": { "include_usage": true } }), |p| {
            p.stream = Some(StreamOptions { include_usage: true, continuous_usage_stats: false });
        });
        check(true, json!({ "cache_salt": "s" }), |p| p.cache_salt = Some("s".into()));
        check(true, json!({ "metadata": {}, "some_unknown_field": [1] }), |_| {});
    }

    #[test]
    fn refuses_what_is_out_of_range() {
        #[track_caller]
        fn check(chat: bool, extra: Value, param: &str, code: &str) {
            let error = parse(chat, &extra).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{error}");
        }
        check(true, json!({ "model": null }), "model", "missing_required_parameter");
        check(true, json!({ "max_tokens": 0 }), "max_tokens", "integer_below_min_value");
        check(true, json!({ "max_tokens": "5" }), "max_tokens", "invalid_type");
        check(false, json!({ "max_tokens": -1 }), "max_tokens", "integer_below_min_value");
        check(true, json!({ "temperature": 2.1 }), "temperature", "decimal_above_max_value");
        check(true, json!({ "top_p": -0.1 }), "top_p", "decimal_below_min_value");
        check(true, json!({ "top_k": -2 }), "top_k", "integer_below_min_value");
        check(true, json!({ "n": 0 }), "n", "integer_below_min_value");
        check(true, json!({ "n": 129 }), "n", "integer_above_max_value");
        check(false, json!({ "n": 3, "best_of": 2 }), "best_of", "integer_below_min_value");
        check(false, json!({ "best_of": 21 }), "best_of", "integer_above_max_value");
        check(false, json!({ "best_of": 2, "stream": true }), "best_of", "invalid_value");
        check(false, json!({ "echo": 1 }), "echo", "invalid_type");
        check(
            true,
            json!({ "repetition_penalty": 0 }),
            "repetition_penalty",
            "decimal_below_min_value",
        );
        check(true, json!({ "logit_bias": { "a": 1 } }), "logit_bias", "invalid_value");
        check(true, json!({ "logit_bias": { "+1": 1 } }), "logit_bias", "invalid_value");
        check(
            true,
            json!({ "logit_bias": { "1": 101 } }),
            "logit_bias.1",
            "decimal_above_max_value",
        );
        check(true, json!({ "logit_bias": [] }), "logit_bias", "invalid_type");
        check(true, json!({ "stop": "" }), "stop", "invalid_value");
        check(true, json!({ "stop": [1] }), "stop[0]", "invalid_type");
        check(true, json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop", "array_above_max_length");
        check(
            true,
            json!({ "stop_token_ids": [-1] }),
            "stop_token_ids[0]",
            "integer_below_min_value",
        );
        check(true, json!({ "top_logprobs": 2 }), "top_logprobs", "invalid_value");
        check(
            true,
            json!({ "logprobs": true, "top_logprobs": 21 }),
            "top_logprobs",
            "integer_above_max_value",
        );
        check(true, json!({ "logprobs": 1 }), "logprobs", "invalid_type");
        check(false, json!({ "logprobs": 6 }), "logprobs", "integer_above_max_value");
        check(true, json!({ "stream_options": {} }), "stream_options", "invalid_value");
        check(
            true,
            json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
            "stream_options.include_usage",
            "invalid_type",
        );
    }
}
