"""Makes templates.json: chat templates in the idioms models use, rendered by transformers.

    pip install transformers jinja2
    python make_templates.py
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

# Thinking is cut out of all turns but the last; walks the messages backwards for the last question.
THINKING = r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

# Headers of roles, a system turn that is always there, trimmed contents.
HEADERS = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

# Instructions in brackets; roles must alternate; the system text goes into the first question.
BRACKETS = r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool") %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
{{- user_messages | length }}
"""

# Lines and indentation between blocks, a macro, a training mark, a conditional expression.
LINES = r"""{# a comment #}
{% macro turn(role, text) %}
### {{ role | capitalize }}:
{{ text }}
{% endmacro %}
{% for message in messages %}
    {% if message['role'] == 'assistant' %}
        {% generation %}
{{ turn('answer', message['content']) }}
        {% endgeneration %}
    {% else %}
{{ turn(message['role'], message['content']) -}}
    {% endif %}
    {% if not loop.last %}

    {% endif %}
{% endfor %}
{{ '### Answer:\n' if add_generation_prompt else eos_token }}
"""

# Values written out: JSON, numbers, lists, filters.
VALUES = r"""{% for message in messages %}{{ message | tojson }}
{% endfor %}{{ {'b': [1, 2.5, true, none], 'a': "<é&'\">"} | tojson }}
{{ {'b': [1, {}], 'a': []} | tojson(indent=4) }}
{{ [1, 2, 3] | join(', ') }} {{ messages | map(attribute='role') | join('/') }} {{ messages | map(attribute='role') | unique | list | length }}
{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 7 / 2 }} {{ none }} {{ true and not false }} {{ 'a' ~ 1 }} {{ "%s-%d" | format("x", 3) }}
{{ 'Hello World'.title() }} {{ 'a,b'.split(',') | last }} {{ ' x '.strip() }}| {{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ 'x' * 3 }} {{ 'aXb'.replace('X', '-') }}
{% for key, value in {'k': 1, 'a': 2}.items() %}{{ key }}={{ value }};{% endfor %}

{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{{ "" if loop.last else "," }}{% endfor %}
"""

TEMPLATES = {"thinking": THINKING, "headers": HEADERS, "brackets": BRACKETS, "lines": LINES, "values": VALUES}

CHATS = [
    [("user", "Hi there")],
    [("system", " Be brief. "), ("user", "What is 2 + 2?\n"), ("assistant", "4"), ("user", "And 3 + 3?")],
    [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "<tool>x</tool>"), ("assistant", "<think>\nso\n</think>\n\nc")],
    [("user", "<b>&\"é\"'\\\t</b>"), ("user", "twice")],
    [("system", "s"), ("critic", "?")],
]


def render(source, chat, prompt):
    messages = [{"role": role, "content": content} for role, content in chat]
    template = _compile_jinja_template(source)
    try:
        text = template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
            bos_token="<s>", eos_token="</s>", enable_thinking=False,
        )
        return {"text": text}
    except Exception as error:
        return {"error": str(error)}


rows = [
    {"template": name, "chat": chat, "add_generation_prompt": prompt, **render(source, chat, prompt)}
    for name, source in TEMPLATES.items()
    for chat in CHATS
    for prompt in (True, False)
]
path = Path(__file__).with_name("templates.json")
path.write_text(json.dumps({"templates": TEMPLATES, "rows": rows}, indent=1) + "\n")
print(path, len(rows), "rows", path.stat().st_size, "bytes")
for row in rows:
    if "error" in row:
        print(row["template"], row["error"])
