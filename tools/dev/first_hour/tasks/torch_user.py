"""A user of torch: a module, exported in memory, calibrated by a DataLoader, measured, saved."""

from __future__ import annotations

import numpy as np
from samples import agreement, digits, outputs
from visit import Visit

NEEDS = ("torch", "onnxscript")


def replay(visit: Visit) -> None:
    import onnx_opt
    import torch

    torch.manual_seed(0)
    pixels, classes = digits()
    flat = torch.from_numpy(pixels.reshape(len(pixels), 64) / 16)
    labels = torch.from_numpy(classes)
    module = trained(flat[:300], labels[:300])
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module, (flat[:2],), dynamic_shapes=({0: batch},), verbose=False
    )
    program.save(str(visit.folder / "float.onnx"))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(flat[:300]), batch_size=32
    )
    out = visit.folder / "small.onnx"
    result = onnx_opt.optimize(program, data=loader, out=out, bench=False)
    visit.check("the program and the loader are taken as they are", out.exists())
    quant = result.passes[1]
    visit.check("layers became integers, or why not", quant.changed or quant.declined)
    with torch.no_grad():
        wanted = module(flat[300:]).argmax(1).numpy()
    (name,) = [port.name for port in result.model.graph.inputs]
    feed = {name: flat[300:].numpy()}
    got = outputs(out, **feed)[0].argmax(1)
    visit.check("99 % of what torch says", (wanted == got).mean() >= 0.99)
    same = agreement(visit.folder / "float.onnx", out, **feed)
    visit.check("99 % of what the export says", same >= 0.99)
    size = out.stat().st_size
    visit.check("its size is that of the account", result.output.bytes == size)
    compared = onnx_opt.verify(program, result.model, data=feed)
    visit.check("verify takes both in memory", compared.overall["sqnr_db"] > 20)
    timed = onnx_opt.bench(program, out, data={name: np.zeros((1, 64), np.float32)})
    visit.check("bench too", len(timed["models"]) == 2)


def trained(samples: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:  # noqa: F821
    """Train a network of two layers."""
    import torch

    module = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )
    steps = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(100):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(module(samples), labels).backward()
        steps.step()
    return module.eval()
