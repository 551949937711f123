"""Kernels of ONNX ops in torch, one file a family of ops."""
