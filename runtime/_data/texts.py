"""Batches from texts, .txt and .jsonl, by the model's own tokenizer.json; read with tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ..session import TensorInfo
from .conventional import left_out

SUFFIXES = (".txt", ".jsonl")
TOKENIZER = "tokenizer.json"

BATCH = 16
"""Texts of a batch, which are as long as its longest. Chosen by hand; not measured."""

LONGEST = 512
"""Tokens after which a text is cut where neither model nor tokenizer says. Chosen by hand."""

LABELS = ("labels", "label", "score")
"""Keys of a .jsonl line that hold its label."""

_PADDING = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
"""Tokens that fill up a text, the first that the vocabulary has."""

_PARTS: dict[str, Callable[[Any], Sequence[int]]] = {
    "input_ids": lambda encoding: encoding.ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "input_mask": lambda encoding: encoding.attention_mask,
    "token_type_ids": lambda encoding: encoding.type_ids,
    "segment_ids": lambda encoding: encoding.type_ids,
    "position_ids": lambda encoding: range(len(encoding.ids)),
}
"""Part of an encoding by the name of the input that takes it."""


class Text(NamedTuple):
    """One text or a pair, and its label."""

    parts: tuple[str, ...]
    label: Any = None


@dataclass(frozen=True)
class TextFile:
    """A file of texts, and the tokenizer that turns them into the model's inputs."""

    path: Path
    tokenizer: Any
    infos: dict[str, TensorInfo]
    batch: int

    @staticmethod
    def open(
        path: Path, inputs: Sequence[TensorInfo], beside: Sequence[Path]
    ) -> TextFile:
        """Find `tokenizer.json` beside the file, or in the folders `beside`.

        Errors: UsageError without the package tokenizers, RefusedError for a missing file or
        tokenizer.json, and for a model with inputs that no tokenizer makes.
        """
        if not path.is_file():
            raise RefusedError(
                f"data {path}", "no such file", "give the path of an existing text file"
            )
        # what neither a tokenizer makes nor anybody needs to give is filled in later
        optional = left_out(inputs) - _PARTS.keys()
        inputs = [info for info in inputs if info.name not in optional]
        infos = {info.name: info for info in inputs}
        ids = _ids_of(path.name, inputs)
        tokenizer = _loaded(path, [path.parent, *beside])
        length = ids.shape[-1] if ids.shape else None
        has_padding = _prepare(tokenizer, length)
        rows = ids.shape[0] if ids.shape else None
        batch = BATCH if has_padding else 1
        if isinstance(rows, int):
            batch = rows
        return TextFile(path, tokenizer, infos, batch)

    def batches(self) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any] | None]]:
        """Yield (feeds, labels) in the file's order. Errors: RefusedError for a faulty line."""
        batch: list[Text] = []
        for text in _texts(self.path):
            batch.append(text)
            if len(batch) == self.batch:
                yield self._encoded(batch)
                batch = []
        rows = next(iter(self.infos.values())).shape[:1]
        if batch and not isinstance(rows[0] if rows else None, int):
            yield self._encoded(batch)

    def _encoded(
        self, texts: Sequence[Text]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
        words = [text.parts if len(text.parts) > 1 else text.parts[0] for text in texts]
        encodings = self.tokenizer.encode_batch(words)
        feeds = {}
        for name in self.infos:
            part = _PARTS.get(name, _PARTS["input_ids"])
            rows = [list(part(encoding)) for encoding in encodings]
            feeds[name] = np.array(rows, np.int64)
        labels = [text.label for text in texts]
        if any(label is None for label in labels):
            return feeds, None
        return feeds, np.array(labels)


def _ids_of(where: str, inputs: Sequence[TensorInfo]) -> TensorInfo:
    """The input that takes tokens. Errors: RefusedError for one that no tokenizer makes."""
    unknown = [info for info in inputs if info.name not in _PARTS]
    by_name = [info for info in inputs if info.name == "input_ids"]
    # the tokens may have any name where nothing else can be meant
    if not by_name and len(unknown) == 1 and unknown[0].dtype.startswith("int"):
        return unknown[0]
    if unknown or not by_name:
        name = unknown[0].name if unknown else inputs[0].name
        raise RefusedError(
            f"data {where}",
            f"a tokenizer does not make the model's input '{name}'",
            f"it makes {', '.join(_PARTS)}; give an .npz file or module:callable",
        )
    return by_name[0]


def _loaded(path: Path, folders: Sequence[Path]) -> Any:
    found = [folder / TOKENIZER for folder in folders]
    found = [file for file in found if file.is_file()]
    if not found:
        raise RefusedError(
            f"data {path.name}",
            f"there is no {TOKENIZER} beside it, nor beside the model",
            "put the model's tokenizer.json there",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError(
            f"data {path.name}",
            "tokenizers is not installed",
            'pip install "onnx-opt[text]"',
        ) from None
    try:
        return Tokenizer.from_file(str(found[0]))
    # its own errors are plain Exceptions
    except Exception as error:
        raise RefusedError(
            str(found[0]), f"is no tokenizer: {error}", "fetch it with the model again"
        ) from error


def _prepare(tokenizer: Any, length: Any) -> bool:
    """Set padding and the longest length; returns whether texts of a batch can be filled up."""
    longest = (tokenizer.truncation or {}).get("max_length", LONGEST)
    fixed = length if isinstance(length, int) else None
    tokenizer.enable_truncation(fixed or longest)
    options = dict(tokenizer.padding or {})
    if not options:
        for token in _PADDING:
            number = tokenizer.token_to_id(token)
            if number is not None:
                options = {"pad_id": number, "pad_token": token}
                break
    if not options:
        if fixed is not None:
            options = {"pad_id": 0, "pad_token": tokenizer.id_to_token(0) or ""}
        else:
            return False
    options["length"] = fixed
    tokenizer.enable_padding(**options)
    return True


def _texts(path: Path) -> Iterator[Text]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            content = line.rstrip("\r\n")
            if not content.strip():
                continue
            if path.suffix == ".txt":
                # a tab stands between the texts of a pair
                yield Text(tuple(content.split("\t")[:2]))
            else:
                yield _from_json(content, f"data {path.name}, line {number}")


def _from_json(line: str, where: str) -> Text:
    """The first one or two texts of an object, and its label."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise RefusedError(
            where, f"is not JSON: {error}", 'write lines such as {"text": "…"}'
        ) from error
    if isinstance(entry, str):
        return Text((entry,))
    if not isinstance(entry, dict):
        raise RefusedError(where, "is no object", 'write lines such as {"text": "…"}')
    label = None
    words = []
    for key, value in entry.items():
        if key in LABELS:
            label = value
        elif isinstance(value, str):
            words.append(value)
    if not words:
        raise RefusedError(where, "holds no text", 'write lines such as {"text": "…"}')
    return Text(tuple(words[:2]), label)
