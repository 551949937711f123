"""A user of Hugging Face: a model folder, exported, made smaller, compared; all offline."""

from __future__ import annotations

import json

import numpy as np
from visit import Visit

from .text import save_tokenizer

NEEDS = ("transformers", "torch", "onnxscript", "tokenizers")
WORDS = ("[PAD]", "[UNK]", *(f"w{number}" for number in range(98)))


def replay(visit: Visit) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    # as small as the shape of a BERT allows, with weights of its own
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=3,
    )
    folder = visit.folder / "bert"
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    save_tokenizer(folder, WORDS)
    chance = np.random.default_rng(0)
    lines = []
    for _ in range(64):
        words = chance.choice(WORDS[2:], chance.integers(3, 12))
        lines.append(json.dumps({"text": " ".join(words)}))
    (folder / "texts.jsonl").write_text("\n".join(lines))

    done = visit.run("export", "bert", "-o", "bert/bert.onnx")
    visit.check("the folder is exported", done.code == 0)
    done = visit.run(
        "bert/bert.onnx", "--data", "bert/texts.jsonl", "--no-bench", "--json"
    )
    visit.check("texts calibrate it", done.code == 0)
    visit.check(
        "it is smaller",
        done.account["output"]["bytes"] < done.account["input"]["bytes"],
    )
    done = visit.run(
        "verify", "bert/bert.onnx", "bert/bert.opt.onnx", "--data", "bert/texts.jsonl",
        "--min-sqnr", "20", "--json",
    )  # fmt: skip
    visit.check("and says the same", done.code == 0 and done.account["within"])
