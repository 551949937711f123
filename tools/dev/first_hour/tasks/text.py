"""A text engineer: a classifier of sentences, a tokenizer.json, and labelled lines."""

from __future__ import annotations

import json
import random
from pathlib import Path

from samples import WORDS, sentiment
from visit import Visit

NEEDS = ("tokenizers",)
SENTENCES = 80


def replay(visit: Visit) -> None:
    sentiment(visit.folder / "sentiment.onnx")
    save_tokenizer(visit.folder, WORDS)
    lines = [json.dumps(sentence(seed)) for seed in range(SENTENCES)]
    (visit.folder / "reviews.jsonl").write_text("\n".join(lines))

    words = ("sentiment.onnx", "--data", "reviews.jsonl", "--metric", "top1")
    done = visit.run("eval", *words, "--json")
    visit.check("sentences are scored as they come", done.account["value"] == 1.0)
    done = visit.run(*words, "--max-drop", "0.05", "--no-bench", "--json")
    visit.check("the run keeps the budget", done.code == 0)
    visit.check("and its score", done.account["metric"]["after"] >= 0.95)
    quant = done.account["passes"][1]
    visit.check(
        "layers became integers, or why not", quant["changed"] or quant["declined"]
    )

    (visit.folder / "other").mkdir()
    save_tokenizer(visit.folder / "other", (*WORDS, "word", "more", "than", "rows"))
    (visit.folder / "other" / "reviews.jsonl").write_text(
        '{"text": "the film was good"}\n{"text": "more was bad"}'
    )
    done = visit.run("sentiment.onnx", "--data", "other/reviews.jsonl", "--no-bench")
    visit.refuses(
        "a tokenizer of another vocabulary is named",
        done,
        3,
        "row 2",
        "no row in the model's table",
    )


def sentence(seed: int) -> dict[str, str | int]:
    """A review of random length with good words or bad ones, and its label."""
    chance = random.Random(seed)
    is_good = seed % 2
    chosen = chance.choices(("good", "fine") if is_good else ("bad", "poor"), k=2)
    chosen += chance.choices(("the", "film", "was", "and"), k=chance.randint(1, 9))
    chance.shuffle(chosen)
    return {"text": " ".join(chosen), "label": is_good}


def save_tokenizer(folder: Path, words: tuple[str, ...]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
