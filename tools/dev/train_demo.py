"""Train the demo model on real handwritten digits and write everything that `onnx-opt demo` runs
on.

Run: `pip install onnx-opt[torch] scikit-learn`, then `python tools/dev/train_demo.py` (half a
minute on two cores). Writes into tools/demo/: digits_cnn.onnx, digits_calib.npz (no labels),
digits_test.npz. Seeds are fixed; weights still differ in the last bits between torch versions, so a
new file means new figures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

SEED = 0
TEST, CALIB = 450, 128
DEMO = Path(__file__).resolve().parents[1] / "demo"


@dataclass(frozen=True)
class Split:
    """Images (N, 1, 8, 8) float32 with values 0-16, and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


def load_splits() -> tuple[Split, Split, Split]:
    """Train, calibration and test images: disjoint, drawn once with `SEED`."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(labels)))
    test, calib, train = order[:TEST], order[TEST : TEST + CALIB], order[TEST + CALIB :]
    splits = [Split(images[part], labels[part]) for part in (train, calib, test)]
    return splits[0], splits[1], splits[2]


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus the shortcut (a 1x1 conv where the shape changes): (N, C, H, W) ->
    (N, M, H/s, W/s).
    """

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = (
            nn.Identity()
            if channels == out
            else nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A small residual network: images (N, 1, 8, 8) with values 0-16 -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 48, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(48)
        self.blocks = nn.Sequential(
            Block(48, 48), Block(48, 48), Block(48, 64, stride=2)
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        h = self.blocks(F.relu(self.bn(self.conv(image))))
        return self.head(self.dropout(h.mean(dim=(2, 3))))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel in both directions, zeros coming in."""
    padded = F.pad(images, (1, 1, 1, 1))
    dy, dx = torch.randint(0, 3, (2, len(images), 1, 1), generator=generator)
    rows = dy + torch.arange(8)[None, :, None]
    columns = dx + torch.arange(8)[None, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def train(split: Split, epochs: int) -> DigitsNet:
    """AdamW with a one-cycle schedule, shifted images and smoothed labels."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = DigitsNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    steps = len(split.labels) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=epochs * steps
    )
    for epoch in range(epochs):
        order = torch.randperm(len(split.labels), generator=generator)
        for batch in order[: steps * 64].split(64):
            logits = model(shifted(split.images[batch], generator))
            loss = F.cross_entropy(logits, split.labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def accuracy(model: nn.Module, split: Split) -> float:
    """Fraction of `split` classified right."""
    with torch.no_grad():
        return (model(split.images).argmax(1) == split.labels).float().mean().item()


def export(model: DigitsNet, path: Path) -> None:
    """Write the network with BatchNormalization kept, batch dynamic and weights inline.

    The exporter's own optimizer would fold BatchNormalization away, and without it hides
    BatchNormalization's inputs behind Expand nodes, which ONNX Runtime cannot fold at load: an
    unfairly slow baseline. Constant folding alone leaves the graph that ONNX Runtime runs best.
    """
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        opset_version=18,
        dynamic_shapes={"image": {0: "batch"}},
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    fold_constants(program.model, input_size_limit=1 << 20, output_size_limit=1 << 20)
    remove_unused_nodes(program.model)
    proto = ir.to_proto(program.model)
    proto.ir_version = 10
    strip_metadata(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces and paths of the machine that trained."""
    graph = proto.graph
    for holder in (
        proto,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        del holder.metadata_props[:]
        holder.doc_string = ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=DEMO)
    given = parser.parse_args()
    torch.set_num_threads(2)
    train_split, calib_split, test_split = load_splits()
    model = train(train_split, given.epochs)
    print(f"test accuracy {accuracy(model, test_split):.4f} on {TEST} images")
    export(model, given.out / "digits_cnn.onnx")
    np.savez_compressed(
        given.out / "digits_calib.npz", image=calib_split.images.numpy()
    )
    np.savez_compressed(
        given.out / "digits_test.npz",
        image=test_split.images.numpy(),
        labels=test_split.labels.numpy(),
    )


if __name__ == "__main__":
    main()
