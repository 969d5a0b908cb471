#!/usr/bin/env python3
"""Makes assets/demo/{train,validation}.jsonl: rewrite the English of 1611 in modern English.

    python3 scripts/make_demo_dataset.py [OUTPUT_FOLDER]

Each row pairs a verse of the King James Version with the same verse of the World English Bible. Both texts
come from Debian packages and are in the public domain. The result depends on nothing but the two packages.
"""

import hashlib
import json
import sys
from pathlib import Path

import debian_texts

# Held out of the base model's pretraining text as well, so nothing here was seen before (make_base_model.py).
BOOKS = ["Ruth", "I Samuel", "Proverbs", "Ecclesiastes", "Jonah", "Acts", "James"]

TRAIN_ROWS = 1500
VALIDATION_ROWS = 150

# In words: short verses keep a row below 120 tokens and training below two minutes on two cores.
SHORTEST, LONGEST = 8, 24


def rows():
    """(chapter, row) of every usable verse."""
    old, new = debian_texts.king_james(), debian_texts.world_english()
    for (book, chapter, verse), source in old.items():
        target = new.get((book, chapter, verse))
        if book not in BOOKS or target is None or source == target:
            continue
        if not all(SHORTEST <= len(text.split()) <= LONGEST for text in (source, target)):
            continue
        # A verse inside a longer speech opens or closes a quotation without its other half.
        if target.count("“") != target.count("”") or target.count("‘") > target.count("’"):
            continue
        messages = [
            {"role": "user", "content": f"Rewrite in modern English: {source}"},
            {"role": "assistant", "content": target},
        ]
        yield (book, chapter), {"messages": messages}


def rank(text):
    """A fixed random order."""
    return hashlib.sha256(text.encode()).hexdigest()


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "assets" / "demo")
    out.mkdir(parents=True, exist_ok=True)
    found = list(rows())
    # Whole chapters are held out, so no validation row stands beside a training row.
    chapters = sorted({chapter for chapter, _ in found}, key=lambda c: rank(f"chapter {c}"))
    held_out, count = set(), 0
    for chapter in chapters:
        if count >= VALIDATION_ROWS:
            break
        held_out.add(chapter)
        count += sum(1 for c, _ in found if c == chapter)
    for name, limit, keep in (("train", TRAIN_ROWS, False), ("validation", VALIDATION_ROWS, True)):
        lines = [json.dumps(row, ensure_ascii=False) for chapter, row in found if (chapter in held_out) == keep]
        lines = sorted(lines, key=rank)[:limit]
        path = out / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {len(lines)} rows, {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
