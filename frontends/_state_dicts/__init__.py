"""Weights of torch checkpoints and how they map to ONNX initializers."""
