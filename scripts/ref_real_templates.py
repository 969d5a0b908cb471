#!/usr/bin/env python3
"""Makes crates/dataset/tests/fixtures/real_templates.json with transformers' apply_chat_template.

    python3 scripts/ref_real_templates.py

Made with transformers 5.23.0, tokenizers 0.23.3 and jinja2 3.1.6; nothing is downloaded. Every template of
crates/dataset/tests/templates/real renders every conversation, with and without the generation prompt; where
a template refuses one, its message is kept. Tokens are those of assets/hone-tiny with the model's special
tokens added, and the mask is transformers' own (`return_assistant_tokens_mask`): since the models' templates
lack {% generation %}, MARKS puts it around what the assistant writes up to the end of its turn, and the
script checks that the marked template renders the same text. A conversation whose tool calls the template
leaves out of the text has `"dropped": true` instead of a mask.
"""

import copy
import json
from pathlib import Path

import jinja2
import tokenizers
import transformers

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "crates" / "dataset" / "tests"
# Llama 3.2's template asks for today's date; this one stands for it.
DATE = "26 Jul 2024"

LLAMA = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "more": ["<|start_header_id|>", "<|end_header_id|>"]}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "more": ["<start_of_turn>", "<end_of_turn>"]}
PHI = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "more": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]}
CHATML = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "more": []}
MISTRAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "more": ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
}
OLD_MISTRAL = MISTRAL | {"more": []}

ON, OFF = "{% generation %}", "{% endgeneration %}"


def marked(expression):
    """`expression` written as is, marked when the message is the assistant's."""
    return f"{{% if message['role'] == 'assistant' %}}{ON}{{{{ {expression} }}}}{OFF}{{% else %}}{{{{ {expression} }}}}{{% endif %}}"


LLAMA_TURN = "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
LLAMA_MARKS = [
    (LLAMA_TURN + "+ message['content'] | trim + '<|eot_id|>' }}", LLAMA_TURN + " }}" + marked("message['content'] | trim + '<|eot_id|>'")),
    ("{{- '{\"name\": \"' + tool_call.name + '\", ' }}", "{%- generation %}{{- '{\"name\": \"' + tool_call.name + '\", ' }}"),
    ('{{- "}" }}\n', '{{- "}" }}{%- endgeneration %}\n'),
]
PHI_MARKS = [
    (
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}",
        "{{'<|assistant|>\n'}}" + ON + "{{ message['content'] + '<|end|>' + ('\n' if loop.last else '') }}" + OFF + "{{ '' if loop.last else '\n' }}",
    ),
    ("{{ eos_token }}", "{% if messages[-1]['role'] == 'assistant' %}" + ON + "{{ eos_token }}" + OFF + "{% else %}{{ eos_token }}{% endif %}"),
]
MISTRAL_CALL = "{%- elif message.tool_calls is defined and message.tool_calls is not none %}"


def mistral_marks(answer, elif_call=MISTRAL_CALL):
    return [
        (elif_call, elif_call + "{%- generation %}"),
        ('                {{- "]" + eos_token }}\n            {%- endif %}\n        {%- endfor %}', '                {{- "]" + eos_token }}\n            {%- endif %}\n        {%- endfor %}{%- endgeneration %}'),
        (answer, "{%- generation %}" + answer + "{%- endgeneration %}"),
    ]


# Template: special tokens, and the places to mark.
TEMPLATES = {
    "llama3": (
        LLAMA,
        [
            (
                "{{ content }}",
                "{% set parts = content.split('<|end_header_id|>\n\n', 1) %}{{ parts[0] + '<|end_header_id|>\n\n' }}" + marked("parts[1]"),
            )
        ],
    ),
    "llama3_1": (
        LLAMA,
        LLAMA_MARKS + [('        {%- else %}\n            {{- "<|eot_id|>" }}', '        {%- else %}\n            {%- generation %}{{- "<|eot_id|>" }}{%- endgeneration %}')],
    ),
    "llama3_2": (LLAMA, LLAMA_MARKS[:2] + [('{{- "}" }}\n        {{- "<|eot_id|>" }}', '{{- "}" }}{{- "<|eot_id|>" }}{%- endgeneration %}')]),
    "qwen2_5": (
        CHATML,
        [
            (
                "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
                "{{- '<|im_start|>' + message.role + '\\n' }}" + marked("message.content + '<|im_end|>'") + "{{- '\\n' }}",
            ),
            ("{{- '<|im_start|>' + message.role }}\n", "{{- '<|im_start|>' + message.role + '\\n' }}{%- generation %}\n"),
            ("{{- '\\n' + message.content }}", "{{- message.content }}"),
            ("{{- '\\n<tool_call>", "{{- ('' if loop.first and not message.content else '\\n') + '<tool_call>"),
            ("        {%- endfor %}\n        {{- '<|im_end|>\\n' }}", "        {%- endfor %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"),
        ],
    ),
    "gemma": (
        GEMMA,
        [
            (
                "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
                "{{ '<start_of_turn>' + role + '\n' }}" + marked("message['content'] | trim + '<end_of_turn>'") + "{{ '\n' }}",
            )
        ],
    ),
    "gemma3": (
        GEMMA,
        [
            ("{{ message['content'] | trim }}", "{% if role == 'model' %}" + ON + "{{ message['content'] | trim + '<end_of_turn>' }}" + OFF + "{% else %}{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}"),
            ("{{ '<end_of_turn>\n' }}", "{{ '\n' }}"),
        ],
    ),
    "phi3": (PHI, PHI_MARKS),
    "phi3_5": (PHI, PHI_MARKS),
    "chatml": (
        CHATML,
        [
            (
                "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
                "{{'<|im_start|>' + message['role'] + '\n' }}" + marked("message['content'] + '<|im_end|>'") + "{{ '\n' }}",
            )
        ],
    ),
    "mistral_v1": (OLD_MISTRAL, [("{{- ' ' + message['content'] + eos_token}}", ON + "{{- ' ' + message['content'] + eos_token}}" + OFF)]),
    "mistral_v3": (MISTRAL, mistral_marks('{{- " " + message["content"]|trim + eos_token}}')),
    "mistral_nemo": (
        MISTRAL,
        mistral_marks('{{- message["content"] + eos_token}}', "{%- elif (message.tool_calls is defined and message.tool_calls is not none) %}"),
    ),
}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, number):
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in <a place> & \"now\"",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}}, "required": ["place"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "the time", "parameters": {"type": "object", "properties": {}}}}
ASK = call("get_weather", {"place": "부산", "days": 2, "zone": None, "exact": True, "limit": 1.5}, 1)
RAIN = turn("tool", '{"rain": true}', tool_call_id="call00001", name="get_weather")

CONVERSATIONS = {
    "one turn": {"messages": [turn("user", "Hello there."), turn("assistant", "Good day.")]},
    "system and three turns": {
        "messages": [
            turn("system", "Be brief."),
            turn("user", "Who wrote Emma?"),
            turn("assistant", "Jane Austen."),
            turn("user", "When?"),
            turn("assistant", "In 1815."),
            turn("user", "Emma?"),
            turn("assistant", "Emma."),
        ]
    },
    "three turns": {
        "messages": [
            turn("user", "a"),
            turn("assistant", "a"),
            turn("user", "model\nassistant"),
            turn("assistant", "model\nassistant"),
            turn("user", "a"),
            turn("assistant", "a"),
        ]
    },
    "white space, quotes and other scripts": {
        "messages": [
            turn("system", " <b>\"Tom\" & 'Jerry'</b>\n"),
            turn("user", "  {{ x }} {% y %}\n\n안녕하세요 "),
            turn("assistant", "\n “Ünïcödé” 🦀\n"),
            turn("user", "\tagain\t"),
            turn("assistant", "  - one\n  - two  "),
        ]
    },
    "reasoning": {
        "messages": [
            turn("user", "1+1?"),
            turn("assistant", "<think>\none and one\n</think>\n\n2"),
            turn("user", "And 2+2?"),
            turn("assistant", "<think>\ntwo and two\n</think>\n\n4"),
        ]
    },
    "a tool": {
        "tools": [WEATHER],
        "messages": [
            turn("user", "Is it raining in Busan?"),
            turn("assistant", "", tool_calls=[ASK]),
            RAIN,
            turn("assistant", "Yes, it is."),
        ],
    },
    "tools, system and several turns": {
        "tools": [WEATHER, CLOCK],
        "messages": [
            turn("system", "Use tools."),
            turn("user", "Hello."),
            turn("assistant", "Hello."),
            turn("user", "Is it raining?"),
            turn("assistant", "", tool_calls=[ASK]),
            RAIN,
            turn("assistant", "Yes."),
            turn("user", "And the time?"),
            turn("assistant", "", tool_calls=[call("clock", {}, 2)]),
            turn("tool", "12:00", tool_call_id="call00002"),
            turn("assistant", "Noon."),
            turn("user", "Thanks."),
            turn("assistant", "Hello."),
        ],
    },
    "two calls at once, with words": {
        "tools": [WEATHER, CLOCK],
        "messages": [
            turn("user", "Rain, and the time?"),
            turn("assistant", "Let me see.", tool_calls=[ASK, call("clock", {}, 2)]),
            RAIN,
            turn("tool", "12:00", tool_call_id="call00002"),
            turn("assistant", "Rain at noon."),
        ],
    },
    "tools that are not used": {
        "tools": [CLOCK],
        "messages": [turn("user", "Hi."), turn("assistant", "Hi."), turn("user", "Bye."), turn("assistant", "Bye.")],
    },
}


def tokenizer_with(special):
    """hone-tiny's tokenizer with the model's control tokens behind its own, in this order."""
    file = ROOT / "assets" / "hone-tiny" / "tokenizer.json"
    inner = tokenizers.Tokenizer.from_file(str(file))
    for text in [special["bos_token"], special["eos_token"], *special["more"]]:
        inner.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=special["bos_token"], eos_token=special["eos_token"])


def without_calls(messages):
    messages = copy.deepcopy(messages)
    for message in messages:
        message.pop("tool_calls", None)
    return messages


def run_lengths(mask):
    """Lengths of runs of equal values, the first of zeros."""
    runs, value = [0], 0
    for bit in mask:
        if bit != value:
            runs.append(0)
            value = bit
        runs[-1] += 1
    return runs


def render(tokenizer, source, conversation, prompt):
    options = dict(chat_template=source, tools=conversation.get("tools"), add_generation_prompt=prompt, date_string=DATE)
    return tokenizer.apply_chat_template(conversation["messages"], tokenize=False, **options)


def case_of(tokenizer, source, marks, conversation, prompt):
    try:
        text = render(tokenizer, source, conversation, prompt)
    except jinja2.exceptions.TemplateError as error:
        return {"refused": str(error)}
    if prompt:
        return {"text": text}
    calls = any("tool_calls" in m for m in conversation["messages"])
    if calls:
        try:
            bare = render(tokenizer, source, conversation | {"messages": without_calls(conversation["messages"])}, False)
        except jinja2.exceptions.TemplateError:
            bare = None
        if bare == text:
            return {"text": text, "dropped": True}
    assert render(tokenizer, marks, conversation, False) == text, "the marked template renders another text"
    encoded = tokenizer.apply_chat_template(
        conversation["messages"], chat_template=marks, tools=conversation.get("tools"), tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True, date_string=DATE,
    )
    return {"text": text, "tokens": list(encoded["input_ids"]), "mask_runs": run_lengths(encoded["assistant_masks"])}


def main():
    cases = []
    for name, (special, marks) in TEMPLATES.items():
        source = (TESTS / "templates" / "real" / f"{name}.jinja").read_text(encoding="utf-8")
        marked_source = source
        for old, new in marks:
            assert marked_source.count(old) == 1, (name, old)
            marked_source = marked_source.replace(old, new)
        tokenizer = tokenizer_with(special)
        for title, conversation in CONVERSATIONS.items():
            for prompt in (False, True):
                case = case_of(tokenizer, source, marked_source, conversation, prompt)
                cases.append({"template": name, "special": special, "title": title, **conversation, "add_generation_prompt": prompt} | case)
    out = TESTS / "fixtures" / "real_templates.json"
    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "tokenizers": tokenizers.__version__}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    out.write_text(f'{{"made_by": "scripts/ref_real_templates.py", "versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")
    kinds = {kind: sum(kind in c for c in cases) for kind in ("text", "refused", "dropped", "mask_runs")}
    print(f"{out}: {len(cases)} cases, {kinds}")


if __name__ == "__main__":
    main()
