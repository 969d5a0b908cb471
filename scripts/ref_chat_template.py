#!/usr/bin/env python3
"""Makes crates/dataset/tests/fixtures/chat_templates.json with transformers' apply_chat_template.

    python3 scripts/ref_chat_template.py

Needs `transformers` and `jinja2`; the versions that made the committed file stand in it. Every template of
crates/dataset/tests/templates renders every conversation; where a template refuses one, its message is kept.
For templates with {% generation %} the tokens and transformers' mask of assistant tokens are kept too, under
the tokenizer of assets/hone-tiny.
"""

import json
from pathlib import Path

import jinja2
import tokenizers
import transformers

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "crates" / "dataset" / "tests"

SPECIAL = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "zephyr": {"bos_token": "<s>", "eos_token": "</s>"},
    "alternating": {"bos_token": "<s>", "eos_token": "</s>"},
    "renamed_roles": {"bos_token": "<bos>", "eos_token": "<eos>"},
}
CHATML = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in <a place> & \"now\"",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}}, "required": ["place"]},
    },
}

CONVERSATIONS = {
    "one turn": {"messages": [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Good day."}]},
    "system and two turns": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who wrote Emma?"},
            {"role": "assistant", "content": "Jane Austen."},
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": "In 1815."},
        ]
    },
    "white space, quotes and other scripts": {
        "messages": [
            {"role": "user", "content": "  <b>\"Tom\" & 'Jerry'</b>\n\n안녕하세요 "},
            {"role": "assistant", "content": "\n “Ünïcödé” 🦀\n"},
        ]
    },
    "the same words twice": {
        "messages": [
            {"role": "user", "content": "Say yes."},
            {"role": "assistant", "content": "Say yes."},
            {"role": "user", "content": "assistant"},
            {"role": "assistant", "content": "assistant"},
        ]
    },
    "reasoning": {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "<think>\none and one\n</think>\n\n2"},
            {"role": "user", "content": "And 2+2?"},
            {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"},
        ]
    },
    "tools": {
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": "Is it raining in Busan?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "부산", "days": 2, "zone": None, "exact": True}}}]},
            {"role": "tool", "content": "{\"rain\": true}", "tool_call_id": "c1"},
            {"role": "tool", "content": "{\"wind\": 3.5}", "tool_call_id": "c2"},
            {"role": "assistant", "content": "Yes, it is."},
        ],
    },
}


def main():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(ROOT / "assets" / "hone-tiny" / "tokenizer.json"))
    cases = []
    for path in sorted((TESTS / "templates").glob("*.jinja")):
        name, source = path.stem, path.read_text(encoding="utf-8")
        special = SPECIAL.get(name, CHATML)
        tokenizer.bos_token, tokenizer.eos_token = special["bos_token"], special["eos_token"]
        for title, conversation in CONVERSATIONS.items():
            for prompt in (False, True):
                case = {"template": name, "special": special, "title": title, **conversation, "add_generation_prompt": prompt}
                options = dict(chat_template=source, tools=conversation.get("tools"), add_generation_prompt=prompt)
                try:
                    case["text"] = tokenizer.apply_chat_template(conversation["messages"], tokenize=False, **options)
                except jinja2.exceptions.TemplateError as error:
                    case["refused"] = str(error)
                if not prompt and "generation %}" in source:
                    encoded = tokenizer.apply_chat_template(
                        conversation["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
                    )
                    case["tokens"] = list(encoded["input_ids"])
                    case["mask"] = list(encoded["assistant_masks"])
                cases.append(case)
    out = TESTS / "fixtures" / "chat_templates.json"
    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "tokenizers": tokenizers.__version__}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    out.write_text(f'{{"made_by": "scripts/ref_chat_template.py", "versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{out}: {len(cases)} cases")


if __name__ == "__main__":
    main()
