"""A Hugging Face model folder as a torch module with made-up inputs.

Needs transformers; nothing is downloaded, and no code inside the folder is run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ... import RefusedError, UsageError
from .capture import quiet
from .source import Source

BATCH, LENGTH = 2, 8
"""Rows and tokens of the example inputs; both axes are dynamic. Chosen by hand; not measured."""

SAMPLES = 16000
"""Samples of an example of sound: one second at the usual rate of 16 kHz."""

IMAGE_SIZE = 224
"""Pixels along each side of an example image, where the config names no size."""

SPECIAL_TOKENS = 5
"""Token ids that random text leaves out: low ids tend to be padding, start and end."""

DimNames = dict[str, dict[int, str]]
"""Input name -> axis -> name of the dynamic dim."""


def open_folder(folder: Path) -> Source:
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
    config = json.loads(config_file.read_text(encoding="utf-8"))
    names = config.get("architectures") or ["AutoModel"]
    model = _load(folder, names[0])
    model.eval()
    # a key-value cache among the outputs has no ONNX form
    model.config.use_cache = False
    kwargs, axes = _example_inputs(model, where)
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs["use_cache"] = False
    return Source(
        where,
        names[0],
        model,
        (),
        kwargs,
        None,
        axes,
    )


def _load(folder: Path, class_name: str) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError(
            "transformers",
            "not installed, and Hugging Face folders need it",
            "pip install 'onnx-opt[hf]'",
        ) from error
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise RefusedError(
            str(folder),
            f"names the class '{class_name}', which this version of transformers does not have",
            "pip install -U transformers; code inside model folders is not run",
        )
    try:
        with quiet():
            return model_class.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        raise RefusedError(
            str(folder),
            f"transformers cannot load it: {type(error).__name__}: {message[:300]}",
            "check the folder with AutoModel.from_pretrained",
        ) from error


def _example_inputs(model: Any, where: str) -> tuple[dict[str, Any], DimNames]:
    """Example inputs by name, and their dynamic axes."""
    main = model.main_input_name
    if main == "input_ids":
        parameters = inspect.signature(model.forward).parameters
        return _text(parameters, model.config)
    if main == "pixel_values":
        return {main: _image(model.config)}, {main: {0: "batch"}}
    if main == "input_values":
        sound = torch.randn(BATCH, SAMPLES)
        return {main: sound}, {main: {0: "batch", 1: "samples"}}
    raise RefusedError(
        where,
        f"takes '{main}', for which no example inputs are made up",
        "write a function that returns (module, args, kwargs), and export file.py:function",
    )


def _image(config: Any) -> Any:
    size = getattr(config, "image_size", None) or IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = getattr(config, "num_channels", 3)
    return torch.randn(BATCH, channels, height, width)


def _text(
    parameters: Mapping[str, Any], config: Any
) -> tuple[dict[str, Any], DimNames]:
    vocabulary = getattr(config, "vocab_size", None)
    if not vocabulary:
        text_config = config.get_text_config()
        vocabulary = text_config.vocab_size
    lowest = min(SPECIAL_TOKENS, vocabulary - 1)
    shape = (BATCH, LENGTH)
    ids = torch.randint(lowest, vocabulary, shape)
    mask = torch.ones(shape, dtype=torch.int64)
    # some padding, so that the comparison with torch sees the mask at work
    mask[-1, LENGTH - 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    types = getattr(config, "type_vocab_size", 0)
    if "token_type_ids" in parameters and types > 1:
        inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if is_encoder_decoder and "decoder_input_ids" in parameters:
        # another length than the encoder's: the two dims are independent
        decoder_shape = (BATCH, LENGTH - 1)
        decoder_ids = torch.randint(lowest, vocabulary, decoder_shape)
        inputs["decoder_input_ids"] = decoder_ids
        axes["decoder_input_ids"] = {0: "batch", 1: "decoder_sequence"}
    known = [name for name in inputs if name in parameters]
    known_inputs = {name: inputs[name] for name in known}
    known_axes = {name: axes[name] for name in known}
    return known_inputs, known_axes
