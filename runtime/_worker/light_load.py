"""Large models in one file, loaded as if their tensors lay in a file beside them.

ONNX Runtime parses one file whole, and holds its tensors twice while it lays them out anew. Those
of external data it maps. A language model of 538 MB takes 1,268 MB at the most while it is loaded
as one file, and 759 MB this way (resident set of the process, onnxruntime 1.32).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ...passes._core.held_file import FileBytes, large_file
from ...passes._core.wire import skeleton
from .ipc import Providers

_CPU = "CPUExecutionProvider"

_FOLDER = "session.model_external_initializers_file_folder_path"
"""Option of a session that is given a model's bytes: the folder of its external data."""

_LOCATION = b"\x0a\x08location"
"""Key of an entry of external data, as protobuf encodes it."""


def load(path: str, settings: Any, providers: Providers) -> Any:
    """Make a session of the model at `path` that leaves its large tensors in the file.

    The file is loaded as it is where that is not possible. Errors: those of ONNX Runtime.
    """
    import onnxruntime as ort

    # other providers look for the model's file themselves
    if providers[0][0] == _CPU:
        # ONNX Runtime refuses data behind a link
        file = os.path.realpath(path)
        encoded = _without_tensors(file)
        if encoded is not None:
            settings.add_session_config_entry(_FOLDER, os.path.dirname(file))
            # a release may not know the option; of a faulty model the file itself is to say why
            with contextlib.suppress(Exception):
                return ort.InferenceSession(encoded, settings, providers=providers)
    return ort.InferenceSession(path, settings, providers=providers)


def _without_tensors(path: str) -> bytes | None:
    """The model at `path` without its large tensors, which it then names as its external data.

    None where there are none, and where it has external data of its own.
    """
    file = large_file(path)
    if file is None:
        return None
    found = skeleton(FileBytes(file), os.path.basename(path))
    if found is None or found.encoded.count(_LOCATION) != len(found.extents):
        return None
    return found.encoded
