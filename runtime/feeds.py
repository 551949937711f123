"""Data for a model: batches of named arrays, checked against its inputs.

They are iterated and never held whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import RefusedError, UsageError
from ..passes._core.fitted_dims import fitted_dims
from ..passes._core.limits import limit
from ..passes._core.nearest import did_you_mean
from ._data import arrays as arrays_module
from ._data import conventional, folders, objects, tables, texts
from ._data.decoders import CachedDecoder, Lengths, in_words, role_of
from ._data.synthetic import LIKELY, MODEST, Overrides, Values, array_for, shape_of
from .callables import load_callable, user_code
from .session import TensorInfo
from .table_rows import first_outside

Arrays = dict[str, NDArray[Any]]
_Shapes = tuple[tuple[int, ...], ...]

# image sides, and lengths of texts and signals, that models in the wild are fixed to inside
_SIZES: tuple[dict[str, int], ...] = (
    {"batch": 2, "spatial": 64, "sequence": 16},
    {"batch": 2, "spatial": 224, "sequence": 64},
    {"batch": 2, "spatial": 32, "sequence": 576},
    {"batch": 2, "spatial": 48, "sequence": 512},
    {"batch": 2, "spatial": 128, "sequence": 8},
    {"batch": 1, "spatial": 64, "sequence": 16},
    {"batch": 1, "spatial": 224, "sequence": 576},
    {"batch": 1, "spatial": 640, "sequence": 1},
)
"""Lengths to try for open axes, likeliest first. Chosen by hand; not measured."""

_ELEMENTS = 1 << 24
"""Elements of a batch that is made up, at most: an image has 2 million. Chosen by hand."""

Phases = tuple[str, ...]
BOTH_PHASES: Phases = ("prefill", "step")
"""Runs of a decoder with a cache: many tokens with nothing in it, and one token behind many."""

_PAST = 2
"""Tokens in the cache of a step, in lengths of the prefill. Chosen by hand; not measured."""

_MODEST_SIZES: tuple[dict[str, int], ...] = (
    {"batch": 16, "spatial": 64, "sequence": 16},
    {"batch": 2, "spatial": 64, "sequence": 16},
    {"batch": 1, "spatial": 224, "sequence": 64},
    {"batch": 1, "spatial": 1, "sequence": 1},
)
"""Lengths to try with modest values, where no likely feeds suit. Chosen by hand; not measured."""

_FORMS = (
    "an .npz, .npy, .csv, .parquet, .txt or .jsonl file, a folder of test_data_set_* or of images, "
    "module:callable or file.py:callable"
)

_LABELS = ("labels", "label")
"""Keys of a batch that hold its labels, unless an input has that name."""


@dataclass(frozen=True)
class Batch:
    """One batch: arrays by input name, and the labels (B,) where the data has them."""

    feeds: Arrays
    labels: NDArray[Any] | None = None


class Feeds:
    """Checked batches, as often as they are iterated.

    `warnings` tells what was adapted or left out, each once. `numbered`: classes that were
    numbered by the order of their folders alone; 0 where the labels are known. Iterating raises
    RefusedError for a batch that does not fit the inputs.
    """

    def __init__(
        self,
        source: Callable[[], Iterable[Any]],
        inputs: Sequence[TensorInfo],
        where: str,
        numbered: int = 0,
    ) -> None:
        self._source = source
        self.inputs = {i.name: i for i in inputs}
        self.where = where
        self.numbered = numbered
        self.warnings: list[str] = []
        self._decoder = CachedDecoder.of(inputs)

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for number, item in enumerate(self._source()):
            empty = False
            yield self._checked(item, f"{self.where}, batch {number}")
        if empty:
            raise RefusedError(
                self.where, "holds no batches", "give at least one sample"
            )

    def note(self, message: str) -> None:
        """Remember something to tell the user, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def _checked(self, item: Any, where: str) -> Batch:
        raw, labels = _split(item, list(self.inputs), where)
        raw = self._filled(raw, where)
        _same_names(raw, self.inputs, where)
        feeds = {name: self._array(name, raw[name], where) for name in self.inputs}
        rows = self._rows(feeds)
        if rows == 0:
            raise RefusedError(where, "is an empty batch", "leave empty batches out")
        if labels is None:
            return Batch(feeds)
        return Batch(feeds, _label_array(labels, rows, where))

    def _rows(self, feeds: Arrays) -> int | None:
        """Samples of a batch; None where no input has an axis."""
        if self._decoder is not None:
            return len(feeds[self._decoder.main])
        for name, array in feeds.items():
            # an axis that the model fixes at 0 counts no samples
            if array.ndim and self.inputs[name].shape[0] != 0:
                return len(array)
        return None

    def _filled(self, raw: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """Add the inputs that follow from those given, or have a conventional value."""
        missing = [name for name in self.inputs if name not in raw]
        if not missing and self._decoder is None:
            return raw
        given = {name: objects.as_array(value) for name, value in raw.items()}
        if missing:
            self._check_shapes(given, where)
        derived = self._derived(given, where)
        missing = [name for name in missing if name not in derived]
        given |= derived
        added = conventional.filled(missing, given, self.inputs)
        for name in added:
            words = conventional.in_words(name)
            self.note(f"{self.where}: input '{name}' is not given: taken as {words}")
        return given | added

    def _check_shapes(self, given: Arrays, where: str) -> None:
        """Refuse arrays of another shape, before others are made to go with them."""
        for name, array in given.items():
            info = self.inputs.get(name)
            if info is not None and info.is_tensor:
                _check_shape(array, info, f"{where}, input '{name}'")

    def _derived(self, given: Arrays, where: str) -> Arrays:
        """Inputs of a decoder with a cache that follow from those given."""
        if self._decoder is None:
            return {}
        derived = self._decoder.filled(given, where)
        for words in in_words(self._decoder, list(derived)):
            self.note(f"{self.where}: {words}")
        return derived

    def _array(self, name: str, value: Any, where: str) -> NDArray[Any]:
        info = self.inputs[name]
        place = f"{where}, input '{name}'"
        if not info.is_tensor:
            raise RefusedError(
                place,
                f"is a {info.dtype}: only tensors can be fed",
                "export the model with tensor inputs",
            )
        array = self._cast(objects.as_array(value), info, place)
        _check_shape(array, info, place)
        if info.rows is not None and array.ndim:
            outside = first_outside(array, info.rows - 1)
            if outside is not None:
                raise RefusedError(
                    place,
                    outside,
                    "take the tokenizer.json that the model was trained with",
                )
        # not of bfloat16, whose kind is V: numpy's own functions do not know it
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = "NaN" if np.isnan(array).any() else "an infinite value"
            raise RefusedError(
                place,
                f"holds {bad}",
                "clean the data: models and statistics need finite values",
            )
        return array

    def _cast(self, array: NDArray[Any], info: TensorInfo, place: str) -> NDArray[Any]:
        """Cast to the input's type: only where that loses nothing, and float64 to float32."""
        if info.dtype == "object" and array.dtype.kind in "OUS":
            return array.astype(object)
        if array.dtype.name == info.dtype:
            return array
        wanted = _numpy_dtype(info.dtype)
        if wanted is not None and _can_cast(array, wanted):
            if not np.can_cast(array.dtype, wanted):
                own = array.dtype.name
                self.note(
                    f"{self.where}: input '{info.name}' is {own}, fed as {info.dtype}"
                )
            if array.dtype == np.uint8 and array.ndim > 2 and wanted.kind == "f":
                self.note(
                    f"{self.where}: input '{info.name}' is uint8, fed as {info.dtype} from 0 to "
                    f"{array.max(initial=0)}: scale it as in training if the model does not"
                )
            return array.astype(wanted)
        raise RefusedError(
            place,
            f"is {array.dtype.name}; the model takes {info.dtype}",
            f"convert it: array.astype('{info.dtype}')",
        )


class StoredFeeds(Feeds):
    """Batches that a run itself made: taken as they are."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        super().__init__(lambda: (), (), "tensors of a run")
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def open_feeds(
    data: Any,
    inputs: Sequence[TensorInfo],
    beside: Path | None = None,
    outputs: Sequence[TensorInfo] = (),
) -> Feeds:
    """Open feeds of any form of data.

    `data`: a path or `module:callable` text, several of them in a list, which are joined; a dict of
    arrays, a function that yields batches, or anything that can be iterated: a list of batches, a
    torch DataLoader, a Hugging Face dataset, a CalibrationDataReader. A batch is a dict of input
    name to array (an array alone for a model with one input), or (batch, labels). `beside`: the
    model's folder, which may hold its tokenizer. `outputs`: those of the model, whose size bounds a
    batch of arrays. Errors: UsageError for a form that is not known,
    RefusedError for data that does not fit; the batches themselves are checked as they are
    iterated.
    """
    if isinstance(data, Feeds):
        return data
    if isinstance(data, (str, Path)):
        return _from_text(str(data), inputs, beside, outputs)
    if _is_several(data):
        parts = [_from_text(str(part), inputs, beside, outputs) for part in data]
        return _joined(parts, inputs)
    if isinstance(data, Mapping):
        return _from_arrays(arrays_module.in_memory(data), inputs, "data", outputs)
    if isinstance(data, np.ndarray):
        unnamed = {arrays_module.UNNAMED: data}
        return _from_arrays(arrays_module.in_memory(unnamed), inputs, "data", outputs)
    source = objects.source_of(data)
    if source is not None:
        return Feeds(source, inputs, "data")
    if callable(data):
        # instances of a class with __call__ have no name of their own
        name = getattr(data, "__qualname__", type(data).__name__)
        return Feeds(lambda: user_code(data, name), inputs, name)
    raise UsageError(
        "data",
        f"a {type(data).__name__} is no data",
        f"give {_FORMS}, a dict of arrays, a function that yields batches, or anything that "
        "can be iterated",
    )


def _is_several(data: Any) -> bool:
    is_list = isinstance(data, (list, tuple)) and len(data) > 0
    return is_list and all(isinstance(part, (str, Path)) for part in data)


def _joined(parts: Sequence[Feeds], inputs: Sequence[TensorInfo]) -> Feeds:
    """One after the other, as one. Errors: RefusedError where only some have labels."""
    if len(parts) == 1:
        return parts[0]

    def batches() -> Iterator[Batch]:
        labelled: dict[bool, str] = {}
        for part in parts:
            for batch in part:
                labelled.setdefault(batch.labels is not None, part.where)
                if len(labelled) == 2:
                    raise RefusedError(
                        f"data {labelled[False]}",
                        f"has no labels, {labelled[True]} has",
                        "give labels to both, or give only one of them",
                    )
                yield batch
            for message in part.warnings:
                feeds.note(message)

    where = " and ".join(part.where for part in parts)
    numbered = max(part.numbered for part in parts)
    feeds = Feeds(batches, inputs, where, numbered)
    return feeds


def _from_text(
    text: str,
    inputs: Sequence[TensorInfo],
    beside: Path | None,
    outputs: Sequence[TensorInfo],
) -> Feeds:
    path = Path(text)
    if path.is_dir():
        folder = folders.open_folder(path, inputs)
        return Feeds(folder.batches, inputs, path.name, folder.numbered)
    if path.suffix in (".npz", ".npy"):
        arrays = arrays_module.open_file(path)
        return _from_arrays(arrays, inputs, path.name, outputs)
    if path.suffix in tables.SUFFIXES:
        return Feeds(tables.Table.open(path, inputs).batches, inputs, path.name)
    if path.suffix in texts.SUFFIXES:
        others = [] if beside is None else [beside]
        return Feeds(
            texts.TextFile.open(path, inputs, others).batches, inputs, path.name
        )
    if ":" in text:
        function = load_callable(text, "data")
        return Feeds(lambda: user_code(function, text), inputs, text)
    if not path.exists():
        raise RefusedError(f"data {text}", "no such file or folder", f"give {_FORMS}")
    raise RefusedError(
        f"data {text}",
        f"'{path.suffix or path.name}' files are not known",
        f"give {_FORMS}",
    )


def _from_arrays(
    arrays: arrays_module.ArraySet,
    inputs: Sequence[TensorInfo],
    where: str,
    outputs: Sequence[TensorInfo],
) -> Feeds:
    plan = arrays_module.plan(arrays, inputs, where, outputs)
    feeds = Feeds(lambda: arrays.batches(plan), inputs, where)
    for key, name in plan.renamed.items():
        feeds.note(f"{where}: '{key}' is taken as '{name}', the model's only input")
    if plan.dropped:
        feeds.note(
            f"{where}: the last {plan.dropped} of {plan.samples} samples are left out: "
            f"the model takes batches of {plan.batch}"
        )
    return feeds


def _split(item: Any, names: list[str], where: str) -> tuple[Mapping[str, Any], Any]:
    """Split a raw batch into feeds, and labels or None."""
    if isinstance(item, Batch):
        return item.feeds, item.labels
    if isinstance(item, Mapping):
        return _without_labels(item, names)
    if isinstance(item, (tuple, list)):
        parts = list(item)
        if len(parts) == 2 and isinstance(parts[0], Mapping):
            return parts[0], parts[1]
        # in the model's order, as loaders of torch give them; labels come last
        if len(parts) == len(names) + 1:
            return dict(zip(names, parts, strict=False)), parts[-1]
        if len(parts) == len(names) and _is_array(parts[0]):
            return dict(zip(names, parts, strict=True)), None
    elif len(names) == 1 and _is_array(item):
        return {names[0]: item}, None
    raise RefusedError(
        where,
        f"is a {type(item).__name__}",
        "yield a dict of input name to array, or (dict, labels)",
    )


def _without_labels(
    item: Mapping[str, Any], names: list[str]
) -> tuple[Mapping[str, Any], Any]:
    for key in _LABELS:
        if key in item and key not in names:
            feeds = {name: value for name, value in item.items() if name != key}
            return feeds, item[key]
    return item, None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _label_array(labels: Any, rows: int | None, where: str) -> NDArray[Any]:
    try:
        array = objects.as_array(labels)
    except ValueError as error:
        raise RefusedError(
            f"{where}, labels", f"are no array: {error}", "give one label a sample"
        ) from error
    if array.ndim and rows is not None and len(array) != rows:
        raise RefusedError(
            f"{where}, labels",
            f"{len(array)} labels for {rows} samples",
            "give one label a sample",
        )
    return array


def _same_names(
    given: Mapping[str, Any], inputs: Mapping[str, TensorInfo], where: str
) -> None:
    unknown = [name for name in given if name not in inputs]
    if unknown:
        names = f"its inputs are {', '.join(inputs)}"
        fix = did_you_mean(str(unknown[0]), inputs, names)
        raise RefusedError(where, f"the model has no input '{unknown[0]}'", fix)
    missing = [name for name in inputs if name not in given]
    if missing:
        raise RefusedError(
            where,
            f"input '{missing[0]}' is missing",
            f"the model's inputs are {', '.join(inputs)}",
        )


def _check_shape(array: NDArray[Any], info: TensorInfo, place: str) -> None:
    """Refuse an array of another rank, or of another length where the model's is fixed."""
    have = _shape(array.shape)
    want = _shape(info.shape)
    if array.ndim != len(info.shape):
        fix = f"give arrays of rank {len(info.shape)}"
        if role_of(info) == "tokens" and array.ndim == 1:
            fix = "give windows: ids[:n].reshape(-1, 256), n a multiple of 256"
        raise RefusedError(
            place,
            f"shape {have} has rank {array.ndim}; the model takes {want}",
            fix,
        )
    for axis, length in enumerate(info.shape):
        own = array.shape[axis]
        if isinstance(length, int) and own != length:
            raise RefusedError(
                place,
                f"shape {have}: axis {axis} is {own}; the model takes {want}",
                f"give arrays of shape {want}",
            )


def _numpy_dtype(name: str) -> np.dtype[Any] | None:
    """Find the type of that name; None where numpy has none."""
    # registers bfloat16 with numpy
    import ml_dtypes  # noqa: F401

    try:
        return np.dtype(name)
    except TypeError:
        return None


def _can_cast(array: NDArray[Any], wanted: np.dtype[Any]) -> bool:
    if np.can_cast(array.dtype, wanted):
        return True
    # numpy makes float64 unless it is told otherwise: what it loses, users do not mean
    if array.dtype == np.float64 and wanted == np.float32:
        return True
    if array.dtype.kind not in "iu" or wanted.kind not in "iu":
        return False
    return bool((array == array.astype(wanted)).all())


def _shape(shape: Sequence[Any]) -> str:
    lengths = ["?" if length is None else str(length) for length in shape]
    return f"[{', '.join(lengths)}]"


def synthetic_feeds(
    inputs: Sequence[TensorInfo],
    seed: int,
    batches: int = 2,
    overrides: Overrides | None = None,
    sizes: Mapping[str, int] | None = None,
    values: Values = LIKELY,
    phases: Phases = BOTH_PHASES,
) -> Feeds:
    """Make up batches, the same for the same seed; a symbol has one length in all inputs.

    `overrides`: lengths of symbols or shapes of inputs. `sizes`: lengths of open `batch`, `spatial`
    and `sequence` axes. Of a decoder with a cache each batch is one for each of `phases`, and
    `overrides` are not heeded. Errors: RefusedError for an input that is no tensor of numbers or
    texts, and for caches of different lengths.
    """
    for info in inputs:
        if not info.is_tensor or _numpy_dtype(info.dtype) is None:
            raise RefusedError(
                f"input '{info.name}'",
                f"is a {info.dtype}: it cannot be made up",
                "give data",
            )
    chosen = {**_SIZES[0], **(sizes or {})}
    decoder = CachedDecoder.of(inputs)
    if decoder is not None:
        return _decoder_feeds(
            decoder,
            seed,
            batches,
            chosen,
            values,
            phases,
        )
    shapes = _shapes_of(inputs, chosen, overrides or {})

    def make() -> Iterator[Arrays]:
        # made anew for every iteration, which gives the same batches
        random = np.random.default_rng(seed)
        _require_affordable(inputs, shapes)
        for _ in range(batches):
            batch = {}
            for info, shape in zip(inputs, shapes, strict=True):
                batch[info.name] = array_for(info, shape, random, values)
            yield batch

    return Feeds(make, inputs, "synthetic data")


def _decoder_feeds(
    decoder: CachedDecoder,
    seed: int,
    batches: int,
    sizes: Mapping[str, int],
    values: Values,
    phases: Phases,
) -> Feeds:
    """Batches of a decoder with a cache, in turns of the phases, at least one of each."""
    runs = []
    for phase in phases:
        lengths = _lengths_in(phase, decoder, sizes)
        # both may be one run, where a model takes one token at a time
        if lengths not in runs:
            runs.append(lengths)

    def make() -> Iterator[Arrays]:
        random = np.random.default_rng(seed)
        count = max(batches, len(runs))
        turns = itertools.cycle(runs)
        for lengths in itertools.islice(turns, count):
            yield decoder.made_up(
                lengths,
                sizes,
                random,
                values,
            )

    inputs = list(decoder.inputs.values())
    return Feeds(make, inputs, "synthetic data")


def _lengths_in(
    phase: str, decoder: CachedDecoder, sizes: Mapping[str, int]
) -> Lengths:
    """Lengths of a prefill, with nothing in the cache, or of a step of one token.

    Errors: RefusedError for caches of different lengths.
    """
    sequence = sizes["sequence"]
    tokens, past = sequence, 0
    if phase == "step":
        tokens, past = 1, _PAST * sequence
    return decoder.fitted(Lengths(sizes["batch"], tokens, past, encoder=sequence))


def candidate_feeds(
    inputs: Sequence[TensorInfo], seed: int, batches: int = 2, path: Path | None = None
) -> Iterator[Feeds]:
    """Make up feeds of several sizes, likeliest first, and then more modest ones.

    Callers take the first for which the original's outputs are finite. `path`: the model's file, by
    whose operators lengths are fitted where the likely ones do not suit.
    """
    if CachedDecoder.of(inputs) is not None:
        yield from _decoder_candidates(inputs, seed, batches)
        return
    tried: set[_Shapes] = set()
    yield from _untried(inputs, seed, batches, _SIZES, LIKELY, tried)
    if path is not None:
        inputs = _fitted(inputs, path)
        yield from _untried(inputs, seed, batches, _SIZES, LIKELY, tried)
    yield from _untried(inputs, seed, batches, _MODEST_SIZES, MODEST, set())


def _decoder_candidates(
    inputs: Sequence[TensorInfo], seed: int, batches: int
) -> Iterator[Feeds]:
    """Both phases where the model accepts them, else one, likeliest first."""
    for phases in (BOTH_PHASES, ("step",), ("prefill",)):
        for sizes in _SIZES:
            yield synthetic_feeds(inputs, seed, batches, sizes=sizes, phases=phases)
    for sizes in _MODEST_SIZES:
        yield synthetic_feeds(inputs, seed, batches, sizes=sizes, values=MODEST)


def _untried(
    inputs: Sequence[TensorInfo],
    seed: int,
    batches: int,
    choices: Iterable[Mapping[str, int]],
    values: Values,
    tried: set[_Shapes],
) -> Iterator[Feeds]:
    """Feeds of each choice of sizes whose shapes are not among those `tried`; they are added."""
    for sizes in _affordable(inputs, choices):
        shapes = _shapes_of(inputs, sizes, {})
        if shapes not in tried:
            tried.add(shapes)
            yield synthetic_feeds(inputs, seed, batches, sizes=sizes, values=values)


def _affordable(
    inputs: Sequence[TensorInfo], choices: Iterable[Mapping[str, int]]
) -> list[Mapping[str, int]]:
    """Choices of sizes that make no more than `_ELEMENTS`, or no more than fixed lengths do alone.

    Several open axes of one input multiply.
    """
    elements = []
    for sizes in choices:
        shapes = _shapes_of(inputs, sizes, {})
        elements.append((sum(math.prod(shape) for shape in shapes), sizes))
    limit = max(_ELEMENTS, min(count for count, _ in elements))
    return [sizes for count, sizes in elements if count <= limit]


def _fitted(inputs: Sequence[TensorInfo], path: Path) -> list[TensorInfo]:
    """Inputs with the lengths that the operators of the model at `path` ask for."""
    dims = fitted_dims(ir.load(path))
    fitted = []
    for info in inputs:
        shape = tuple(dims.get(info.name, info.shape))
        fitted.append(dataclasses.replace(info, shape=shape))
    return fitted


def _require_affordable(inputs: Sequence[TensorInfo], shapes: _Shapes) -> None:
    """Refuse to make up a batch that takes more memory than allowed: a model can ask for any.

    Errors: RefusedError.
    """
    most = limit("FEED_BYTES")
    for info, shape in zip(inputs, shapes, strict=True):
        # made as numbers of 8 bytes
        nbytes = 8 * math.prod(shape)
        if nbytes > most:
            raise RefusedError(
                f"input '{info.name}'",
                f"would take {nbytes:,} bytes to make up",
                "give --data, or raise ONNX_OPT_FEED_BYTES",
            )


def sized_feeds(
    inputs: Sequence[TensorInfo], seed: int, rows: Sequence[int]
) -> Iterator[list[Feeds]]:
    """Make up feeds of one batch for each length in `rows`, likeliest other sizes first.

    Lengths that make no difference to the shapes are left out.
    """
    decoder = CachedDecoder.of(inputs)
    tried: set[_Shapes] = set()
    for sizes in _affordable(inputs, _SIZES):
        plans: dict[_Shapes, dict[str, int]] = {}
        for count in rows:
            chosen = {**sizes, "batch": count}
            shapes: _Shapes
            if decoder is None:
                shapes = _shapes_of(inputs, chosen, {})
            else:
                lengths = _lengths_in("prefill", decoder, chosen)
                shapes = (lengths,)
            plans.setdefault(shapes, chosen)
        if tried.issuperset(plans):
            continue
        tried.update(plans)
        yield [
            synthetic_feeds(inputs, seed, batches=1, sizes=chosen)
            for chosen in plans.values()
        ]


def _shapes_of(
    inputs: Sequence[TensorInfo], sizes: Mapping[str, int], overrides: Overrides
) -> _Shapes:
    """A shape for each input, in which a symbol has one length throughout."""
    lengths = {**_symbol_lengths(inputs, sizes, overrides), **overrides}
    return tuple(shape_of(info, sizes, lengths) for info in inputs)


def _symbol_lengths(
    inputs: Sequence[TensorInfo], sizes: Mapping[str, int], overrides: Overrides
) -> dict[str, int]:
    """Length of each symbol, as the input of the highest rank has it."""
    lengths: dict[str, int] = {}
    # where a symbol stands in a vector tells less of what it is
    for info in sorted(inputs, key=lambda i: -len(i.shape)):
        shape = shape_of(info, sizes, {**lengths, **overrides})
        for dim, length in zip(info.shape, shape, strict=True):
            if isinstance(dim, str):
                lengths.setdefault(dim, length)
    return lengths
