//! Errors as OpenAI words them, so that clients which match on codes or messages keep working.

use std::fmt::Display;

use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::text::TemplateError;

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What a client is told when a request fails: a status and OpenAI's error envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    /// `type` in the envelope.
    pub kind: &'static str,
    pub message: String,
    /// Path of the offending field, such as `messages[0].role`.
    pub param: Option<String>,
    pub code: Option<String>,
    /// Set when the same request may succeed later.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    fn code(mut self, code: &str) -> ApiError {
        self.code = Some(code.to_owned());
        self
    }

    fn bad_request(param: &str, code: &str, message: String) -> ApiError {
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code(code);
        error.param = Some(param.to_owned());
        error
    }

    /// A value of the right type that is not acceptable; `message` is the whole sentence.
    pub fn invalid_value(param: &str, message: impl Into<String>) -> ApiError {
        ApiError::bad_request(param, "invalid_value", message.into())
    }

    /// What constrains the answer cannot be followed; `problem` says why.
    pub fn grammar(param: &str, problem: &str) -> ApiError {
        let message = format!("Invalid '{param}': the answer cannot be made to match: {problem}.");
        ApiError::bad_request(param, "invalid_value", message)
    }

    /// All workers of a model are of a version that does not know what a request needs.
    pub fn no_worker_can(needed: &[&str]) -> ApiError {
        let message = format!("No worker of this model does what is asked: {}.", needed.join(", "));
        let error = ApiError::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message);
        error.code("unsupported_by_model")
    }

    /// A string outside of a fixed set.
    pub fn not_one_of(param: &str, got: &str, supported: &[&str]) -> ApiError {
        let supported: Vec<_> = supported.iter().map(|value| format!("'{value}'")).collect();
        let supported = supported.join(", ");
        ApiError::invalid_value(
            param,
            format!("Invalid value: '{got}'. Supported values are: {supported}."),
        )
    }

    /// `expected` and `got` carry their articles: `an integer`, `a string`.
    pub fn invalid_type(param: &str, expected: &str, got: &str) -> ApiError {
        let message =
            format!("Invalid type for '{param}': expected {expected}, but got {got} instead.");
        ApiError::bad_request(param, "invalid_type", message)
    }

    /// `number` is `integer` or `decimal`.
    pub fn above_maximum(
        param: &str,
        number: &str,
        maximum: impl Display,
        got: impl Display,
    ) -> ApiError {
        let message = format!(
            "Invalid '{param}': {number} above maximum value. \
             Expected a value <= {maximum}, but got {got} instead."
        );
        ApiError::bad_request(param, &format!("{number}_above_max_value"), message)
    }

    /// `number` is `integer` or `decimal`.
    pub fn below_minimum(
        param: &str,
        number: &str,
        minimum: impl Display,
        got: impl Display,
    ) -> ApiError {
        let message = format!(
            "Invalid '{param}': {number} below minimum value. \
             Expected a value >= {minimum}, but got {got} instead."
        );
        ApiError::bad_request(param, &format!("{number}_below_min_value"), message)
    }

    /// A required field is absent or null.
    pub fn missing(param: &str) -> ApiError {
        let message = format!("Missing required parameter: '{param}'.");
        ApiError::bad_request(param, "missing_required_parameter", message)
    }

    /// An array that needs at least one item.
    pub fn empty_array(param: &str) -> ApiError {
        let message = format!(
            "Invalid '{param}': empty array. \
             Expected an array with minimum length 1, but got an empty array instead."
        );
        ApiError::bad_request(param, "empty_array", message)
    }

    /// A string that needs at least one character.
    pub fn empty_string(param: &str) -> ApiError {
        let message = format!(
            "Invalid '{param}': empty string. \
             Expected a string with minimum length 1, but got an empty string instead."
        );
        ApiError::bad_request(param, "empty_string", message)
    }

    /// A string with more characters than allowed.
    pub fn string_too_long(param: &str, length_max: usize, length: usize) -> ApiError {
        let message = format!(
            "Invalid '{param}': string too long. \
             Expected a string with maximum length {length_max}, \
             but got a string with length {length} instead."
        );
        ApiError::bad_request(param, "string_above_max_length", message)
    }

    /// The schema of a function's arguments is not usable; `problem` says why.
    pub fn function_parameters(param: &str, name: &str, problem: &str) -> ApiError {
        let message = format!("Invalid schema for function '{name}': {problem}.");
        ApiError::bad_request(param, "invalid_function_parameters", message)
    }

    /// The schema of an answer is not usable; `problem` says why.
    pub fn json_schema(param: &str, problem: &str) -> ApiError {
        let message = format!("Invalid schema for '{param}': {problem}.");
        ApiError::bad_request(param, "invalid_json_schema", message)
    }

    /// An array with more items than allowed.
    pub fn array_too_long(param: &str, length_max: usize, length: usize) -> ApiError {
        let message = format!(
            "Invalid '{param}': array too long. \
             Expected an array with maximum length {length_max}, \
             but got an array with length {length} instead."
        );
        ApiError::bad_request(param, "array_above_max_length", message)
    }

    /// An object with more properties than allowed.
    pub fn object_too_large(param: &str, properties_max: usize, properties: usize) -> ApiError {
        let message = format!(
            "Invalid '{param}': too many properties. \
             Expected an object with at most {properties_max} properties, \
             but got an object with {properties} properties instead."
        );
        ApiError::bad_request(param, "object_above_max_properties", message)
    }

    /// A field we know but do not do yet; `what` names it in the sentence `… is not supported yet.`
    pub fn unsupported(param: &str, what: &str) -> ApiError {
        let message = format!("Unsupported parameter: {what} is not supported yet.");
        ApiError::bad_request(param, "unsupported_parameter", message)
    }

    /// `completion_tokens` is what the request asked for on top of its prompt, if it did.
    pub fn context_length_exceeded(
        param: &str,
        context_tokens: usize,
        prompt_tokens: usize,
        completion_tokens: Option<usize>,
    ) -> ApiError {
        let requested = match completion_tokens {
            Some(completion_tokens) => format!(
                "you requested {} tokens ({prompt_tokens} in the {param}, \
                 {completion_tokens} in the completion)",
                prompt_tokens.saturating_add(completion_tokens)
            ),
            None => format!("your {param} resulted in {prompt_tokens} tokens"),
        };
        let message = format!(
            "This model's maximum context length is {context_tokens} tokens. \
             However, {requested}. Please reduce the length of the {param}."
        );
        ApiError::bad_request(param, "context_length_exceeded", message)
    }

    /// A conversation for a model that only continues text.
    pub fn no_chat_template(model: &str) -> ApiError {
        let message =
            format!("The model `{model}` has no chat template. Use /v1/completions instead.");
        ApiError::invalid_value("model", message)
    }

    /// The request names a model that is not served here.
    pub fn model_not_found(model: &str) -> ApiError {
        let message =
            format!("The model `{model}` does not exist or you do not have access to it.");
        ApiError::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("model_not_found")
    }

    /// No endpoint has this path.
    pub fn route_not_found(method: impl Display, path: &str) -> ApiError {
        let message = format!("Invalid URL ({method} {path})");
        ApiError::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("unknown_url")
    }

    /// OpenAI has this path, and this server does not.
    pub fn not_done_here(method: impl Display, path: &str, what: &str) -> ApiError {
        let message = format!(
            "Invalid URL ({method} {path}): this server does not do {what}. \
             GET /openapi.json says what it does."
        );
        ApiError::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("unknown_url")
    }

    /// The path exists, but not for this method.
    pub fn method_not_allowed(method: impl Display, path: &str) -> ApiError {
        let message = format!(
            "Not allowed to {method} on {path}. \
             (HINT: Perhaps you meant to use a different HTTP method?)"
        );
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, message)
            .code("method_not_supported")
    }

    /// The body is over the limit, so it was not read to its end.
    pub fn body_too_large(body_bytes_max: usize) -> ApiError {
        let message =
            format!("The request body is larger than the limit of {body_bytes_max} bytes.");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message)
            .code("request_too_large")
    }

    /// The body is not declared as JSON; `got` is the header, if there is one.
    pub fn unsupported_content_type(got: Option<&str>) -> ApiError {
        let got = got.unwrap_or("none");
        let message = format!("Invalid Content-Type header ({got}), expected application/json.");
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message)
            .code("unsupported_content_type")
    }

    /// The body is compressed; `got` is the header.
    pub fn unsupported_content_encoding(got: &str) -> ApiError {
        let message = format!("Content-Encoding {got} is not supported: send the body as it is.");
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message)
            .code("unsupported_content_encoding")
    }

    /// The head of the request is over a limit; `limit` names it, such as `100 headers`.
    pub fn headers_too_large(limit: &str) -> ApiError {
        let message = format!("The headers of your request are larger than the limit of {limit}.");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        ApiError::new(status, INVALID_REQUEST, message).code("headers_too_large")
    }

    /// The request's path is over the limit.
    pub fn url_too_long(bytes_max: usize) -> ApiError {
        let message =
            format!("The URL of your request is longer than the limit of {bytes_max} bytes.");
        ApiError::new(StatusCode::URI_TOO_LONG, INVALID_REQUEST, message).code("url_too_long")
    }

    /// What came is no HTTP request.
    pub fn malformed_request() -> ApiError {
        let message = "We could not parse the head of your request: it is not HTTP/1.1 or HTTP/2.";
        ApiError::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code("malformed_request")
    }

    /// Nothing more of the body came.
    pub fn body_timed_out() -> ApiError {
        let message = "The body of your request did not arrive in time.";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, message).code("body_timeout")
    }

    /// A text of so many bytes that its tokens need not be counted.
    pub fn text_too_long(param: &str, context_tokens: usize, bytes: usize) -> ApiError {
        let message = format!(
            "This model's maximum context length is {context_tokens} tokens. However, your {param} \
             came to {bytes} bytes, which is more. Please reduce the length of the {param}."
        );
        ApiError::bad_request(param, "context_length_exceeded", message)
    }

    /// The server ends before the answer does.
    pub fn shutting_down() -> ApiError {
        let message = "The server is shutting down. Please try again.";
        let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, message)
            .code("shutting_down");
        error.retry_after_s = Some(1);
        error
    }

    /// The body broke off, or its transfer encoding is wrong.
    pub fn unreadable_body() -> ApiError {
        let message = "We could not read the body of your request to its end.";
        ApiError::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code("unreadable_body")
    }

    /// The body does not parse as JSON.
    pub fn malformed_json(error: &serde_json::Error) -> ApiError {
        // The parser has no other way to say so.
        let is_deep = error.to_string().starts_with("recursion limit exceeded");
        let message = match is_deep {
            true => "The JSON body of your request is nested too deep: 127 levels are the limit."
                .to_string(),
            false => format!("We could not parse the JSON body of your request: {error}."),
        };
        ApiError::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code("invalid_json")
    }

    /// The body is JSON, but not an object.
    pub fn body_not_object(got: &str) -> ApiError {
        let message = format!(
            "Invalid type for the request body: expected an object, but got {got} instead."
        );
        ApiError::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code("invalid_type")
    }

    /// Nobody can take the request at present.
    pub fn overloaded(retry_after_s: u64) -> ApiError {
        let message = "The server is overloaded or not ready yet. Please try again later.";
        let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, message)
            .code("overloaded");
        error.retry_after_s = Some(retry_after_s);
        error
    }

    /// Says nothing about the cause: that belongs in the log, not on the wire.
    pub fn internal() -> ApiError {
        let message = "The server had an error while processing your request.";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER_ERROR, message)
            .code("internal_error")
    }

    /// The JSON a client receives, as a body or as an event of a stream.
    pub fn envelope(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        })
    }

    /// SDKs retry some statuses by themselves. Where no time is named, it would be in vain.
    fn must_not_retry(&self) -> bool {
        self.retry_after_s.is_none()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.envelope().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after_s) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        if self.must_not_retry() {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> ApiError {
        let message = match error {
            TemplateError::Raised(message) => message,
            TemplateError::Syntax(_) | TemplateError::Render(_) => {
                "The chat template of this model cannot represent these messages.".to_owned()
            }
        };
        ApiError::invalid_value("messages", message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: ApiError, status: u16, param: Option<&str>, code: &str, message: &str) {
        assert_eq!(error.status.as_u16(), status, "{message}");
        let envelope = error.envelope();
        let inner = envelope["error"].as_object().unwrap();
        assert_eq!(inner.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert_eq!(inner["message"], message);
        assert_eq!(inner["param"], json!(param), "{message}");
        assert_eq!(inner["code"], code, "{message}");
    }

    #[test]
    fn speaks_as_openai_does() {
        check(
            ApiError::above_maximum("n", "integer", 128, 130),
            400,
            Some("n"),
            "integer_above_max_value",
            "Invalid 'n': integer above maximum value. \
             Expected a value <= 128, but got 130 instead.",
        );
        check(
            ApiError::below_minimum("temperature", "decimal", 0, -0.5),
            400,
            Some("temperature"),
            "decimal_below_min_value",
            "Invalid 'temperature': decimal below minimum value. \
             Expected a value >= 0, but got -0.5 instead.",
        );
        check(
            ApiError::invalid_type("max_tokens", "an integer", "a string"),
            400,
            Some("max_tokens"),
            "invalid_type",
            "Invalid type for 'max_tokens': expected an integer, but got a string instead.",
        );
        check(
            ApiError::not_one_of("messages[0].role", "bot", &["system", "user"]),
            400,
            Some("messages[0].role"),
            "invalid_value",
            "Invalid value: 'bot'. Supported values are: 'system', 'user'.",
        );
        check(
            ApiError::unsupported("suffix", "'suffix'"),
            400,
            Some("suffix"),
            "unsupported_parameter",
            "Unsupported parameter: 'suffix' is not supported yet.",
        );
        check(
            ApiError::context_length_exceeded("messages", 4096, 4000, Some(100)),
            400,
            Some("messages"),
            "context_length_exceeded",
            "This model's maximum context length is 4096 tokens. However, you requested 4100 tokens \
             (4000 in the messages, 100 in the completion). \
             Please reduce the length of the messages.",
        );
        check(
            ApiError::model_not_found("m"),
            404,
            None,
            "model_not_found",
            "The model `m` does not exist or you do not have access to it.",
        );
        check(
            ApiError::route_not_found("POST", "/v2"),
            404,
            None,
            "unknown_url",
            "Invalid URL (POST /v2)",
        );
        check(
            ApiError::not_done_here("POST", "/v1/audio/speech", "audio"),
            404,
            None,
            "unknown_url",
            "Invalid URL (POST /v1/audio/speech): this server does not do audio. \
             GET /openapi.json says what it does.",
        );
    }

    #[test]
    fn tells_sdks_when_to_retry() {
        fn headers(error: ApiError) -> (Option<String>, Option<String>) {
            let response = error.into_response();
            let text = |name| {
                response
                    .headers()
                    .get(name)
                    .map(|value: &HeaderValue| value.to_str().unwrap().into())
            };
            assert_eq!(text("content-type").as_deref(), Some("application/json"));
            (text("retry-after"), text("x-should-retry"))
        }
        assert_eq!(headers(ApiError::overloaded(7)), (Some("7".into()), None));
        assert_eq!(headers(ApiError::internal()), (None, Some("false".into())));
        assert_eq!(headers(ApiError::missing("model")), (None, Some("false".into())));
    }
}
