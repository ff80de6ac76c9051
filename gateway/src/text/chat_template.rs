//! Chat templates, rendered as Hugging Face's `apply_chat_template` renders them.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::conversation::{Habits, RELAXATIONS};
use super::python_json::{to_template_value, tojson};
use super::strftime::strftime;

const NAME: &str = "chat_template";
/// Instructions, or units of 64 bytes, that one rendering may take: well under a second, and far
/// more than the longest conversation needs.
const FUEL_MAX: u64 = 20_000_000;

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself is broken.
    #[error("the chat template does not parse")]
    Syntax(#[source] Error),
    /// The template refused the messages; the text is meant for the user.
    #[error("{0}")]
    Raised(String),
    /// The template failed on the messages without saying so itself.
    #[error("the chat template cannot be rendered")]
    Render(#[source] Error),
}

/// The chat template of a model, parsed once.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    habits: Habits,
}

/// What a template is told beside messages and tools.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateVariables {
    /// Whether the prompt ends with what asks for the next message.
    pub add_generation_prompt: bool,
    /// Each an object.
    pub documents: Option<Vec<serde_json::Value>>,
    /// By name; what has a place of its own comes from there.
    pub others: serde_json::Map<String, serde_json::Value>,
}

impl Default for TemplateVariables {
    fn default() -> Self {
        Self { add_generation_prompt: true, documents: None, others: Default::default() }
    }
}

impl ChatTemplate {
    /// Parses a template. Tokens that the model does not have stay undefined in it.
    pub fn new(
        source: String,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<ChatTemplate, TemplateError> {
        let mut environment = environment().map_err(TemplateError::Syntax)?;
        environment
            .add_template_owned(NAME, without_generation_tags(&source))
            .map_err(TemplateError::Syntax)?;
        let habits = Habits::of(&source);
        Ok(ChatTemplate { environment, bos_token, eos_token, habits })
    }

    /// The prompt that asks for the next message of the assistant.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
    ) -> Result<String, TemplateError> {
        self.render_with(messages, tools, &TemplateVariables::default())
    }

    /// The messages as a prompt. Where the template fails on them, what it may have stumbled over is
    /// changed.
    pub fn render_with(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
        variables: &TemplateVariables,
    ) -> Result<String, TemplateError> {
        let messages = self.habits.adapt(messages);
        let rendered = self.render_as_is(&messages, tools, variables);
        let error = match rendered {
            Err(TemplateError::Render(error)) if error.kind() != ErrorKind::OutOfFuel => error,
            other => return other,
        };
        let relaxed = RELAXATIONS.iter().filter_map(|relaxation| relaxation.apply(&messages));
        let mut again = relaxed.map(|messages| self.render_as_is(&messages, tools, variables));
        again.find_map(Result::ok).ok_or(TemplateError::Render(error))
    }

    fn render_as_is(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
        variables: &TemplateVariables,
    ) -> Result<String, TemplateError> {
        let list = |items: &[serde_json::Value]| -> Value {
            items.iter().map(to_template_value).collect()
        };
        let others = variables.others.iter();
        let mut context: Vec<(&str, Value)> =
            others.map(|(name, value)| (name.as_str(), to_template_value(value))).collect();
        context.extend([
            ("messages", list(messages)),
            // Defined but none, as templates that test for it expect.
            ("tools", tools.map_or(Value::from(()), list)),
            ("documents", variables.documents.as_deref().map_or(Value::from(()), list)),
            ("add_generation_prompt", Value::from(variables.add_generation_prompt)),
        ]);
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            context.extend(token.as_ref().map(|token| (name, Value::from(token))));
        }
        let template = self.environment.get_template(NAME).map_err(TemplateError::Render)?;
        template.render(Value::from_pairs(context)).map_err(render_error)
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL_MAX));
    environment.set_debug(false);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    // In Jinja whatever has a length and can be indexed is a sequence.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    Ok(environment)
}

/// `{% generation %}` marks what to train on and prints its body as it is. That is what
/// `{% if true %}` does, which the template engine knows.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let (tag, after) = tag.split_once("%}").unwrap_or((tag, ""));
        let name = tag.trim_matches(|character: char| matches!(character, '-' | '+' | ' ' | '\n'));
        out.push_str(before);
        // Without an end the tag is a syntax error, and stays one.
        let end = if before.len() + tag.len() + 2 < rest.len() { "%}" } else { "" };
        let tag = match name {
            "generation" => tag.replace(name, "if true"),
            "endgeneration" => tag.replace(name, "endif"),
            _ => tag.to_owned(),
        };
        out.extend(["{%", &tag, end]);
        rest = after;
    }
    out + rest
}

/// Carries the message of `raise_exception` through the template engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(Raised(message)))
}

fn render_error(error: Error) -> TemplateError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        cause = current.source();
    }
    TemplateError::Render(error)
}

fn strftime_now(format: &str) -> String {
    // A clock before 1970 is not worth an error.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, now.as_secs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Written for these tests with the constructs of the templates of the Llama 3 family.
    const HEADERS: &str = r#"{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if date_string | length == 4 and system_message %}
    {{- "<system>" + system_message + "</system>\n" }}
{%- endif %}
{%- if tools is not none %}
    {{- "tools: " }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<' + message['role'] + '>' + message['content'] | trim + '</' + message['role'] + '>\n' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}\n" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- "result: " + (message.content | tojson) + "\n" }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
{%- endif %}
"#;

    /// Written for these tests with the constructs of the templates of the Qwen 3 family.
    const THINKING: &str = r#"{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- 'assistant(' + reasoning_content.strip('\n') + ') ' + content + '\n' }}
        {%- else %}
            {{- 'assistant ' + content + '\n' }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- tool_call.name ~ ' ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '\n' }}
            {%- endfor %}
        {%- endif %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (loop.previtem and loop.previtem.role != "tool") %}
            {{- 'results:' }}
        {%- endif %}
        {{- ' ' + content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '\n' }}
        {%- endif %}
    {%- else %}
        {{- message.role + ' ' + content + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'assistant' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- ' without thoughts' }}
    {%- endif %}
{%- endif %}"#;

    fn render(source: &str, messages: serde_json::Value) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(source.to_owned(), Some("<bos>".into()), None)?;
        template.render(messages.as_array().unwrap(), None)
    }

    #[track_caller]
    fn check(source: &str, messages: serde_json::Value, expected: &str) {
        assert_eq!(render(source, messages).unwrap(), expected, "{source}");
    }

    fn tool_call(count: usize) -> serde_json::Value {
        let call = json!({ "id": "c", "type": "function",
            "function": { "name": "add", "arguments": { "b": 1, "a": "<é>" } } });
        json!({ "role": "assistant", "content": null, "tool_calls": vec![call; count] })
    }

    #[test]
    fn headers() {
        check(
            HEADERS,
            json!([
                { "role": "system", "content": " be brief\n" },
                { "role": "user", "content": "1 < 2?" },
                tool_call(1),
                { "role": "tool", "content": "4" },
            ]),
            "<bos><system>be brief</system>\n<user>1 < 2?</user>\n\
             {\"name\": \"add\", \"parameters\": {\"b\": 1, \"a\": \"<é>\"}}\nresult: \"4\"\n<assistant>",
        );
    }

    #[test]
    fn headers_with_tools() {
        let template = ChatTemplate::new(HEADERS.to_owned(), Some("<bos>".into()), None).unwrap();
        let messages = [json!({ "role": "user", "content": "hi" })];
        assert_eq!(
            template.render(&messages, Some(&[json!({ "name": "f" })])).unwrap(),
            "<bos>tools: {\n    \"name\": \"f\"\n}\n<user>hi</user>\n<assistant>"
        );
    }

    #[test]
    fn thinking() {
        check(
            THINKING,
            json!([
                { "role": "user", "content": "a" },
                { "role": "assistant", "content": "<think>\nhm\n</think>\n\nb" },
                { "role": "user", "content": "c" },
                { "role": "assistant", "content": "", "reasoning_content": "call it",
                  "tool_calls": tool_call(1)["tool_calls"] },
                { "role": "tool", "content": "3" },
                { "role": "tool", "content": "4" },
            ]),
            "user a\nassistant b\nuser c\nassistant(call it) \nadd {\"b\": 1, \"a\": \"<é>\"}\n\
             results: 3 4\nassistant",
        );
    }

    #[test]
    fn behaves_as_jinja_in_python() {
        let messages = || json!([{ "role": "user", "content": "Some Text" }]);
        for (source, expected) in [
            ("{% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
            ("{{ none }} {{ true }} {{ missing }} {{ 1.0 }}", "None True  1.0"),
            ("{{ eos_token is defined }} {{ tools is none }}", "False True"),
            ("{{ messages[0].get('name', 'nobody') }}", "nobody"),
            (
                "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
                "role=user;content=Some Text;",
            ),
            ("{{ messages[0].content.upper().replace('T', 't') }}", "SOME tEXt"),
            ("{{ messages[0].content is sequence }}", "True"),
            ("{{ 'a,b,c'.split(',', 1)[1] }}{{ 'abc'[1:] }}{{ 'abc'[-1] }}", "b,cbcc"),
            (
                "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "013",
            ),
            (
                "{% macro m(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ m('a') }}{{ m('b', y='?') }}",
                "a!b?",
            ),
            ("{{ messages | map(attribute='role') | join(',') }}", "user"),
            ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
            ("{% set x %}a{{ 1 }}{% endset %}{{ x }}", "a1"),
            ("{{ '%s-%d' | format('a', 3) }} {{ 'a' ~ 1 }} {{ 7 // 2 }}", "a-3 a1 3"),
        ] {
            check(source, messages(), expected);
        }
    }

    #[test]
    fn generation_tags_print_their_body() {
        check(
            "a {%- generation -%} b {%- endgeneration %}\n{% if true %}c{% endif %}",
            json!([]),
            "abc",
        );
        assert!(matches!(render("a {% b", json!([])), Err(TemplateError::Syntax(_))));
        assert_eq!(without_generation_tags("a {% b"), "a {% b");
        assert_eq!(without_generation_tags("{% b %}"), "{% b %}");
    }

    #[test]
    fn long_conversations_have_fuel_enough() {
        let pair = [
            json!({ "role": "user", "content": "question ".repeat(100) }),
            json!({ "role": "assistant", "content": "answer ".repeat(100) }),
        ];
        for source in [HEADERS, THINKING] {
            assert!(
                render(source, json!(vec![pair.clone(); 5000].concat())).unwrap().len() > 8_000_000
            );
        }
    }

    #[test]
    fn a_raised_exception_is_for_the_user() {
        let raised = |source, messages| match render(source, messages) {
            Err(TemplateError::Raised(message)) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            raised(HEADERS, json!([{ "role": "user", "content": "x" }, tool_call(2)])),
            "This model only supports single tool-calls at once!"
        );
        let in_macro = "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}";
        assert_eq!(raised(in_macro, json!([])), "no");
    }

    #[test]
    fn broken_and_hostile_templates_are_errors() {
        let error = |source| render(source, json!([])).unwrap_err();
        assert!(matches!(error("{% if %}"), TemplateError::Syntax(_)));
        assert!(matches!(error("{{ messages[0].content }}"), TemplateError::Render(_)));
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(error(endless), TemplateError::Render(_)));
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(matches!(error(recursive), TemplateError::Render(_)));
    }
}
