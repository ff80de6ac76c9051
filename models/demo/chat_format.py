"""The chat format of the demo model: its Jinja template, and the same rendering in plain Python.

Training renders millions of tokens, so it uses the plain functions below. `evaluate.py` goes
through the Jinja template, and `check_template` proves that both give the same text.
"""

import json

END = "<|im_end|>"
START = "<|im_start|>"
PAD = "<|endoftext|>"
SPECIAL_TOKENS = [PAD, START, END]
MARKER_TOKENS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]

CHAT_TEMPLATE = """\
{%- if messages and messages[0].role in ['system', 'developer'] -%}
  {%- set system = messages[0].content or '' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- if system or tools -%}
  {{- '<|im_start|>system\\n' -}}
  {{- system -}}
  {%- if tools -%}
    {%- if system -%}{{- '\\n\\n' -}}{%- endif -%}
    {{- 'You can call these tools:\\n<tools>' -}}
    {%- for tool in tools -%}
      {%- set function = tool.function if tool.function is defined else tool -%}
      {{- '\\n' -}}{{- function | tojson -}}
    {%- endfor -%}
    {{- '\\n</tools>' -}}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in turns -%}
  {%- set content = message.content or '' -%}
  {%- if message.role == 'tool' -%}
    {{- '<|im_start|>tool\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' + content -}}
    {%- if message.tool_calls -%}
      {%- for call in message.tool_calls -%}
        {%- set function = call.function if call.function is defined else call -%}
        {%- if content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
        {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
        {%- if function.arguments is string -%}
          {{- function.arguments -}}
        {%- else -%}
          {{- function.arguments | tojson -}}
        {%- endif -%}
        {{- '}\\n</tool_call>' -}}
      {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + ('system' if message.role == 'developer' else message.role) + '\\n' + content + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def to_json(value):
    """JSON as the template's `tojson` filter writes it."""
    return json.dumps(value, ensure_ascii=False)


def tool_block(tools, dump=to_json):
    """The list of tools inside the system turn; `dump` writes one tool."""
    lines = "".join("\n" + dump(tool.get("function", tool)) for tool in tools)
    return "You can call these tools:\n<tools>" + lines + "\n</tools>"


def call_text(call):
    """One tool call as the assistant writes it."""
    function = call.get("function", call)
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = to_json(arguments)
    return '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>' % (function["name"], arguments)


def segments(messages, tools=None, dump=to_json):
    """Renders a chat as a list of (text, is_assistant) pieces; assistant pieces end with END."""
    system, turns = "", messages
    if messages and messages[0]["role"] == "system":
        system, turns = messages[0]["content"] or "", messages[1:]
    pieces = []
    if system or tools:
        parts = [part for part in (system, tool_block(tools, dump) if tools else "") if part]
        pieces.append((f"{START}system\n" + "\n\n".join(parts) + f"{END}\n", False))
    for message in turns:
        pieces.extend(turn_segments(message))
    return pieces


def turn_segments(message):
    """The pieces of one message that is not the leading system message."""
    content = message.get("content") or ""
    if message["role"] == "assistant":
        calls = [call_text(call) for call in message.get("tool_calls") or []]
        body = "\n".join(([content] if content else []) + calls)
        return [(f"{START}assistant\n", False), (body + END, True), ("\n", False)]
    if message["role"] == "tool":
        content = f"<tool_response>\n{content}\n</tool_response>"
    return [(f"{START}{message['role']}\n{content}{END}\n", False)]


def check_template(tokenizer, messages, tools=None):
    """Raises when the Jinja template and the plain rendering differ for this chat."""
    rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    plain = "".join(text for text, _ in segments(messages, tools))
    if rendered != plain:
        raise AssertionError(f"template and plain rendering differ:\n{rendered!r}\n{plain!r}")
