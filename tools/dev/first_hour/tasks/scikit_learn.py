"""A user of scikit-learn: scaled digits, a network, a forest, and data in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from samples import agreement
from visit import Visit

NEEDS = ("sklearn", "skl2onnx")
AGREEMENT = 0.99


def replay(visit: Visit) -> None:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    samples, labels = load_digits(return_X_y=True)
    samples = samples.astype(np.float32)
    train, test, train_labels, test_labels = train_test_split(
        samples, labels, random_state=0
    )
    network = make_pipeline(
        StandardScaler(), MLPClassifier((128, 64), max_iter=60, random_state=0)
    )
    network.fit(train, train_labels)
    export(network, train, visit.folder / "network.onnx")
    np.savez(visit.folder / "train.npz", X=train)
    np.savez(visit.folder / "test.npz", X=test, labels=test_labels)

    before = visit.folder / "network.onnx"
    after = visit.folder / "network.opt.onnx"
    done = visit.run("network.onnx", "--data", "train.npz", "--no-bench")
    visit.check("the plain command does it", done.code == 0 and after.exists())
    same = agreement(before, after, X=test)
    visit.check(f"labels agree on {AGREEMENT:.0%} of new samples", same >= AGREEMENT)
    words = ("network.onnx", "--data", "test.npz", "--metric", "top1", "--json")
    done = visit.run("eval", *words)
    real = network.score(test, test_labels)
    visit.check("labels as the first output score", done.account["value"] == real)
    done = visit.run(
        "network.onnx", "-p", "prune-channels(ratio=0.3)", "--data", "train.npz",
        "-o", "narrow.onnx", "--no-bench", "--json",
    )  # fmt: skip
    visit.check("channels go behind a scaler", done.account["passes"][0]["changed"] > 0)
    figures = done.account
    visit.check("MACs are known", figures["output"]["macs"] < figures["input"]["macs"])

    forest = RandomForestClassifier(20, random_state=0).fit(train, train_labels)
    export(forest, train, visit.folder / "forest.onnx")
    done = visit.run("forest.onnx", "--data", "train.npz", "--no-bench")
    visit.check(
        "a forest is said to have no pass",
        done.code == 0 and "tree ensemble: " in done.words,
    )
    done = visit.run("inspect", "forest.onnx")
    visit.check("inspect shows the forest", "TreeEnsembleClassifier" in done.out)


def export(model: Any, samples: np.ndarray, path: Path) -> None:
    """Convert a fitted model, with scores as a matrix."""
    from skl2onnx import to_onnx

    proto = to_onnx(model, samples[:1], options={"zipmap": False})
    onnx.save(proto, path)
