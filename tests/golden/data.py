#!/usr/bin/env python3
"""Golden values of the feature `data`: writes data.json beside this file.

    python -m venv venv && venv/bin/pip install transformers==5.23.0 jinja2==3.1.6 blake3==1.0.11
    venv/bin/python tests/golden/data.py

Conversations under chat templates as transformers renders them (the templates are written here, in the idioms of those that models bring); orders
and digests as docs of `prefopt::data` define them, written again in Python.
"""

import importlib.metadata
import json
import pathlib
import struct

VERSIONS = {"transformers": "5.23.0", "jinja2": "3.1.6", "blake3": "1.0.11"}
for package, version in VERSIONS.items():
    found = importlib.metadata.version(package)
    assert found == version, f"{package} {version} is needed, found {found}"

import blake3  # noqa: E402
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

TEMPLATES = {
    # ChatML, with a default system message; blocks on lines of their own.
    "chatml": """{% if messages[0]['role'] != 'system' %}
    {{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{% endif %}
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""",
    # A system message that moves into the first turn, roles that must alternate, begin and end tokens.
    "alternating": """{%- if messages[0]['role'] == 'system' -%}
    {%- set loop_messages = messages[1:] -%}
    {%- set system_message = messages[0]['content'] -%}
{%- else -%}
    {%- set loop_messages = messages -%}
    {%- set system_message = false -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- if loop.index0 == 0 and system_message != false -%}
        {%- set content = '<<SYS>>\\n' ~ system_message ~ '\\n<</SYS>>\\n\\n' ~ message['content'] -%}
    {%- else -%}
        {%- set content = message['content'] -%}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ' + content.strip() + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}
""",
    # Tools by tojson, a date if there is a clock, `is defined`, `is none`, the builtin filters.
    "tools": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|head|>system<|end|>\\n\\n" }}
{{- "Today: " + date_string + "\\n" }}
{%- if tools is not none %}
    {{- "Tools: " }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n" }}
    {%- endfor %}
    {{- tools | tojson }}
    {{- tools | map(attribute='function') | map(attribute='name') | join(', ') }}
{%- else %}
    {{- "No tools." }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- "<|head|>ipython<|end|>" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- elif 'tool_calls' in message and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}' }}
        {%- endfor %}
    {%- else %}
        {{- '<|head|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    # Thoughts that are kept in the last turn only: namespaces, backward slices, split, lstrip; a generation prompt that closes the thought.
    "thoughts": """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == 'user' and message.content is string %}
        {%- set ns.found = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    # Loop controls, generation blocks, what Python prints, macros, conditional expressions.
    "odds": """{% macro head(role) %}<{{ role | upper }}>{% endmacro %}
{% for message in messages %}
{% if message.role == 'system' %}
{% continue %}
{% endif %}
{% if loop.index > 4 %}
{% break %}
{% endif %}
{% if message.role == 'assistant' %}
{{ head(message.role) }}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}

{% else %}
{{ head('model' if message.role == 'assistant' else message.role) }}{{ message.content.replace('a', 'A') }}
{% endif %}
{% endfor %}
{{ tools }} {{ add_generation_prompt }} {{ missing }} {{ [1, 2] | tojson }} {{ {'é': '<&>'} | tojson }} {{ {'é': 1.0} | tojson(ensure_ascii=True, separators=(',', ':')) }}
{%- for key, value in {'b': 1, 'a': 2}.items() %} {{ key }}={{ value }}{% endfor %}
{{ 'x' if messages[-1].content.startswith('N') and not messages[0].content.endswith('z') }}
""",
}

USER, REPLY, SYSTEM = ({"role": r, "content": c} for r, c in [("user", "  What is a cat?\n"), ("assistant", " An animal. "), ("system", "Talk.")])
MORE = [{"role": "user", "content": "And a dog?"}, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNo cat"}]
CALL = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"place": "Zürich", "days": [1, 2.5, None, True]}}}]},
    {"role": "tool", "content": "sunny"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "It's \"the\" weather", "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {}, "l": []}}}}]
CONVERSATIONS = {
    "one": [USER],
    "reply": [USER, REPLY],
    "system": [SYSTEM, USER, REPLY],
    "more": [SYSTEM, USER, REPLY, *MORE],
    "broken": [USER, USER],
    "call": CALL,
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def cases():
    for template, source in TEMPLATES.items():
        for name, messages in CONVERSATIONS.items():
            if name == "call" and template != "tools":
                continue
            for tools in [None, TOOLS] if template == "tools" and name in ("one", "call") else [None]:
                for variables in [{}, {"enable_thinking": False}] if template == "thoughts" else [{}]:
                    for prompt in (False, True):
                        case = {"template": template, "conversation": name, "tools": tools is not None, "variables": variables, "reply": prompt}
                        source_now = source
                        if template == "tools":
                            # transformers has a clock in any case; ours is there only when it is set.
                            source_now = source.replace("strftime_now is defined", "false")
                        try:
                            text = render_jinja_template([messages], tools=tools, chat_template=source_now, add_generation_prompt=prompt, **SPECIAL, **variables)[0][0]
                            yield case | {"text": text}
                        except Exception as error:  # what raise_exception raises
                            yield case | {"error": str(error)}


def words(purpose, seed, epoch):
    hasher = blake3.blake3(purpose + struct.pack("<QQ", seed, epoch))
    at = 0
    while True:
        yield struct.unpack("<Q", hasher.digest(length=8, seek=at))[0]
        at += 8


def shuffle(items, stream):
    for last in range(len(items) - 1, 0, -1):
        n = last + 1
        limit = 2**64 - 2**64 % n
        word = next(word for word in stream if word < limit)
        items[last], items[word % n] = items[word % n], items[last]
    return items


def orders():
    for pairs, seed, epoch in [(1, 0, 0), (7, 0, 0), (7, 0, 1), (7, 1, 0), (100, 2**63 + 5, 3)]:
        yield {"pairs": pairs, "seed": seed, "epoch": epoch, "order": shuffle(list(range(pairs)), words(b"prefopt order 1", seed, epoch))}


def digest(pairs):
    hasher = blake3.blake3(b"prefopt pairs 1")
    for pair in pairs:
        for part in pair:
            hasher.update(struct.pack("<Q", len(part)) + struct.pack(f"<{len(part)}I", *part))
    return hasher.hexdigest()


def held_out(prompt, seed):
    own = blake3.blake3(b"prefopt prompt 1" + struct.pack(f"<{len(prompt)}I", *prompt)).digest()
    raw = blake3.blake3(b"prefopt split 2" + struct.pack("<Q", seed) + own[:8]).digest()
    return struct.unpack("<Q", raw[:8])[0] / 2**64


PAIRS = [[[1, 5, 6], [7, 2], [8, 8, 2]], [[1], [4294967295, 2], [3]]]
golden = {
    "versions": VERSIONS,
    "special": SPECIAL,
    "templates": TEMPLATES,
    "conversations": CONVERSATIONS,
    "tools": TOOLS,
    "cases": list(cases()),
    "orders": list(orders()),
    "pairs": PAIRS,
    "digest": digest(PAIRS),
    "held_out": [held_out([prompt], 9) for prompt in range(40)],
    "files": blake3.blake3(b"".join(blake3.blake3(x).digest() for x in (b"first", b"second"))).hexdigest(),
}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
