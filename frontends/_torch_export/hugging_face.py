"""A Hugging Face model folder as a torch module with made-up inputs. Needs transformers; nothing is
downloaded.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch

from ... import RefusedError, UsageError
from .capture import quiet
from .source import Source

BATCH, LENGTH = 2, 8
"""Sizes of the example inputs; both axes are dynamic."""

SAMPLES = 16000
"""Length of an example of sound: one second at the usual rate."""


def opened(folder: Path) -> Source:
    """The model of the folder, by the class that its config names, with inputs for it.

    Errors: UsageError without transformers, RefusedError for a folder or a kind of model that it
    does not take.
    """
    where = str(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise RefusedError(
            where,
            "is a folder without config.json, so no Hugging Face model",
            "give the folder that model.save_pretrained wrote",
        )
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError(
            "transformers",
            "not installed, and Hugging Face folders need it",
            "pip install 'onnx-opt[hf]'",
        ) from error
    names = json.loads(config_file.read_text(encoding="utf-8")).get(
        "architectures"
    ) or ["AutoModel"]
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise RefusedError(
            where,
            f"names the class '{names[0]}', which this version of transformers does not have",
            "pip install -U transformers; code inside model folders is not run",
        )
    try:
        with quiet():
            model = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise RefusedError(
            where,
            f"transformers cannot load it: {type(error).__name__}: {first[:300]}",
            "check the folder with AutoModel.from_pretrained",
        ) from error
    model.eval()
    model.config.use_cache = False
    kwargs, axes = _inputs(model, where)
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs["use_cache"] = False
    return Source(where, names[0], model, (), kwargs, None, axes)


def _inputs(model: Any, where: str) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Example inputs by name, and their dynamic axes."""
    taken = inspect.signature(model.forward).parameters
    main, config = model.main_input_name, model.config
    if main == "input_ids":
        return _text(taken, config)
    if main == "pixel_values":
        size = getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        image = torch.randn(BATCH, getattr(config, "num_channels", 3), height, width)
        return {main: image}, {main: {0: "batch"}}
    if main == "input_values":
        return {main: torch.randn(BATCH, SAMPLES)}, {main: {0: "batch", 1: "samples"}}
    raise RefusedError(
        where,
        f"takes '{main}', for which no example inputs are made up",
        "write a function that returns (module, args, kwargs), and export file.py:function",
    )


def _text(taken: Any, config: Any) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    vocabulary = (
        getattr(config, "vocab_size", None) or config.get_text_config().vocab_size
    )
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (BATCH, LENGTH))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[-1, LENGTH - 2 :] = 0
    kwargs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in taken and getattr(config, "type_vocab_size", 0) > 1:
        kwargs["token_type_ids"] = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "sequence"} for name in kwargs}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
        kwargs["decoder_input_ids"] = torch.randint(
            min(5, vocabulary - 1), vocabulary, (BATCH, LENGTH - 1)
        )
        axes["decoder_input_ids"] = {0: "batch", 1: "decoder_sequence"}
    known = [name for name in kwargs if name in taken]
    return {name: kwargs[name] for name in known}, {name: axes[name] for name in known}
