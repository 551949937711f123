"""Results of one recipe in a store: put in their place again, or kept for the next run."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._run.provenance import sha256_of
from .recipe import Recipe
from .store import KeptResult, Store

CACHE_MB = 2048
"""Default size of a store, in MB. Chosen by hand."""


@dataclass(frozen=True)
class ResultCache:
    """The results of a recipe, by model. It never fails a run: see `Store`."""

    store: Store
    recipe: Recipe

    def take(self, model: Path, out: Path) -> dict[str, Any] | None:
        """Put the result that is kept of a model in its place; its account, None without one."""
        try:
            entry = self.store.find(self.recipe.key(model), model)
        # it is told where the model is run
        except OSError:
            return None
        if entry is None or not _is_placed(entry, out):
            return None
        return {**entry.account, "output_path": str(out)}

    def digest(self, model: Path) -> str | None:
        """Digest of a model before its run; None where it cannot be read."""
        try:
            return sha256_of(model)
        except OSError:
            return None

    def keep(
        self, model: Path, before: str | None, out: Path, account: dict[str, Any]
    ) -> None:
        """Keep a result, unless the model is no longer the one of the digest `before`."""
        if before is None or before != self.digest(model):
            return
        # here, not above: they load onnx_ir, and most of a batch may lie in the store
        from ...frontends.onnx_file import load
        from .._run.figures import files_of

        result = load(out)
        data = files_of(out, result) - {out}
        original = load(model)
        read = files_of(model, original) - {model}
        folder = os.path.realpath(model.parent)
        weights = {}
        for file in read:
            place = os.path.realpath(file)
            name = os.path.relpath(place, folder)
            weights[name] = sha256_of(file)
        key = self.recipe.key(model)
        self.store.keep(key, [*sorted(data), out], weights, account)


def _is_placed(entry: KeptResult, out: Path) -> bool:
    """Copy a result to its place; False where another run has just removed it."""
    *data, name = entry.files
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if data:
            # the writer of models gives data files names that nothing uses yet
            from ...frontends.onnx_file import load, save

            save(load(entry.folder / name), out)
            return True
        handle, temporary = tempfile.mkstemp(
            dir=out.parent, prefix=f".{out.name[:80]}."
        )
        os.close(handle)
        try:
            shutil.copyfile(entry.folder / name, temporary)
            # mkstemp's are for one user alone
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, out)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
