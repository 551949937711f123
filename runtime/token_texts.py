"""Words for tokens, by the tokenizer that lies beside a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from ._data.texts import TOKENIZER


def token_texts(folder: Path) -> Callable[[int], str | None] | None:
    """A function from tokens to their texts, None for one that the tokenizer lacks.

    None where the folder has no tokenizer.json that can be read, or the package is not installed.
    """
    path = folder / TOKENIZER
    if not path.is_file() or importlib.util.find_spec("tokenizers") is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:
        # the library raises nothing else
        return None
    text_of: Callable[[int], str | None] = tokenizer.id_to_token
    return text_of
