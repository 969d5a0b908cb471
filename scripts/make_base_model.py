#!/usr/bin/env python3
"""Prepares what `make_base_model.sh` pretrains from: corpus, tokenizer and model configuration.

    python3 scripts/make_base_model.py WORK_FOLDER

writes WORK_FOLDER/model (everything of assets/hone-tiny but the weights and the card) and
WORK_FOLDER/corpus/{train,validation}.txt. Needs the Python package `tokenizers` (0.23.3 made the committed
files). The result depends on nothing but the Debian packages and that version.

The text is English in the public domain: Jane Austen's novels, the King James and the World English Bible,
The Devil's Dictionary. The books that the demo dataset is made from are left out. About a quarter of the
tokens stand in the chat format: definitions, quotations by reference, "what follows?" and repetition, so the
base knows turns, and has learned to look back at the user's message.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import debian_texts
from make_demo_dataset import BOOKS as DEMO_BOOKS

VOCABULARY = 4096
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 1024,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCABULARY,
}

# In characters: about 250 tokens, the sequence length of pretraining.
DOCUMENT = 1000


def documents(pieces):
    """Joins consecutive pieces of one book into documents of about DOCUMENT characters."""
    book, text = None, ""
    for name, piece in pieces:
        if text and (name != book or len(text) + len(piece) > DOCUMENT):
            yield text
            text = ""
        book, text = name, f"{text} {piece}".strip()
    if text:
        yield text


def chat(*turns):
    """One conversation in the model's own format; a document has no blank line inside."""
    roles = ("user", "assistant")
    return "\n".join(f"{START}{roles[i % 2]}\n{' '.join(t.split())}{STOP}" for i, t in enumerate(turns))


def sentences(pieces, shortest, longest):
    """Sentences of a length in words."""
    for _, piece in pieces:
        for sentence in piece.replace("? ", "?|").replace("! ", "!|").replace(". ", ".|").split("|"):
            if shortest <= len(sentence.split()) <= longest and '"' not in sentence:
                yield sentence.strip()


def corpus(rng):
    """(prose, conversations)."""
    bible = {}
    for name, verses in (("King James", debian_texts.king_james()), ("World English", debian_texts.world_english())):
        bible[name] = {key: text for key, text in verses.items() if key[0] not in DEMO_BOOKS}
    novels = debian_texts.austen()
    prose = list(documents(novels))
    for verses in bible.values():
        prose += documents((f"{book} {chapter}", text) for (book, chapter, _), text in verses.items())

    talks = []
    for word, meaning in debian_texts.devils_dictionary():
        question = rng.choice(["What is {}?", "Define {}.", "What does {} mean?"]).format(word)
        talks.append(chat(question, meaning[:400].rsplit(". ", 1)[0].rstrip(".") + "."))
    for name, verses in bible.items():
        keys = list(verses)
        for book, chapter, verse in rng.sample(keys, 2500):
            talks.append(chat(f"Quote {book} {chapter}:{verse} ({name} version).", verses[book, chapter, verse]))
        for book, chapter, verse in rng.sample(keys, 1500):
            if following := verses.get((book, chapter, verse + 1)):
                talks.append(chat(f"What comes after: {verses[book, chapter, verse]}", following))
    pool = list(sentences(novels, 5, 24))
    pool += sentences(((None, text) for verses in bible.values() for text in verses.values()), 5, 24)
    for said in rng.sample(pool, 9000):
        ask = rng.choice(["Repeat: {}", "Say this again: {}", "Copy this sentence: {}", "Write this down: {}"])
        talks.append(chat(ask.format(said), said))
    return prose, talks


def tokenizer(texts):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in (END, START, STOP)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_base_model.py WORK_FOLDER")
    out = Path(sys.argv[1])
    model, data = out / "model", out / "corpus"
    model.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)

    rng = random.Random(1611)
    prose, talks = corpus(rng)
    texts = prose + talks
    rng.shuffle(texts)

    made = tokenizer(texts)
    made.save(str(model / "tokenizer.json"))
    write_json(model / "tokenizer_config.json", {
        "add_bos_token": False,
        "bos_token": END,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": CONFIG["max_position_embeddings"],
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
    stop = [made.token_to_id(END), made.token_to_id(STOP)]
    write_json(model / "config.json", CONFIG)
    write_json(model / "generation_config.json", {
        "bos_token_id": stop[0], "eos_token_id": stop, "pad_token_id": stop[0], "do_sample": True, "temperature": 0.7,
    })

    held_out = len(texts) // 100
    for name, part in (("validation", texts[:held_out]), ("train", texts[held_out:])):
        path = data / f"{name}.txt"
        path.write_text("\n\n".join(part) + "\n", encoding="utf-8")
        tokens = sum(len(e.ids) + 1 for e in made.encode_batch(part))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}: {len(part)} documents, {tokens} tokens, {path.stat().st_size} bytes, sha256 {digest}")
    talk_tokens = sum(len(e.ids) + 1 for e in made.encode_batch(talks))
    print(f"conversations: {len(talks)}, {talk_tokens} tokens; vocabulary {made.get_vocab_size()}")


if __name__ == "__main__":
    main()
