"""Optimize a model from Python: `python examples/optimize_demo.py [OUT.onnx]`.

Uses the trained model and the data that onnx-opt ships. Nothing is written without OUT.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import onnx_opt


def main(out: Path | None) -> None:
    demo = Path(str(files("onnx_opt.tools.demo")))
    result = onnx_opt.optimize(
        demo / "digits_cnn.onnx",
        "simplify, prune(sparsity=0.5, allocation=lamp), quant(int8)",
        out=out,
        data=demo / "digits_calib.npz",
        eval_data=demo / "digits_test.npz",
        metric="top1",
    )
    before, after = result.input, result.output
    print(f"bytes    {before.bytes} -> {after.bytes}")
    print(f"nonzero  {before.nonzero} -> {after.nonzero}")
    print(f"ms       {before.latency_ms:.3f} -> {after.latency_ms:.3f}")
    if result.metric is not None:
        print(
            f"{result.metric['name']}     {result.metric['before']:.4f} -> "
            f"{result.metric['after']:.4f}"
        )
    for step in result.passes:
        print(f"{step.text}: changed {step.changed}, declined {len(step.declined)}")
        for declined in step.declined:
            print(f"  left {declined['where']}: {declined['reason']}")
    for warning in result.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
