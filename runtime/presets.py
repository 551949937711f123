"""Preprocessing that models are usually trained with, as text to start from."""

from __future__ import annotations

SPEC = "preprocess.toml"
"""File beside images that says how they become a model's input."""

PRESETS = {
    "imagenet": """\
size = [224, 224]    # height, width of the model's input
resize = 256         # shorter side before the centre crop; 0 stretches to `size`
mean = [0.485, 0.456, 0.406]   # (pixel / 255 - mean) / std
std = [0.229, 0.224, 0.225]
layout = "NCHW"      # or NHWC
""",
    "inception": """\
size = [299, 299]
resize = 320
mean = 0.5           # pixels from -1 to 1
std = 0.5
layout = "NCHW"
""",
    "tensorflow": """\
size = [224, 224]
resize = 256
scale = 1            # pixels from -1 to 1, channels last
mean = 127.5
std = 127.5
layout = "NHWC"
""",
    "caffe": """\
size = [224, 224]
resize = 256
scale = 1            # pixels from 0 to 255, less their mean, blue first
mean = [103.939, 116.779, 123.68]
channels = "BGR"
layout = "NCHW"
""",
    "clip": """\
size = [224, 224]
resize = 224
mean = [0.48145466, 0.4578275, 0.40821073]
std = [0.26862954, 0.26130258, 0.27577711]
layout = "NCHW"
""",
    "cifar10": """\
size = [32, 32]
mean = [0.4914, 0.4822, 0.4465]
std = [0.2023, 0.1994, 0.201]
layout = "NCHW"
""",
    "mnist": """\
size = [28, 28]
channels = "L"
mean = 0.1307
std = 0.3081
layout = "NCHW"
""",
    "unit": """\
size = [224, 224]    # pixels from 0 to 1
layout = "NCHW"
""",
}
"""Text of a `preprocess.toml` by name."""
