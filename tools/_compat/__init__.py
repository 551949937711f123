"""Calls of onnxruntime.quantization, said in the words of this project."""
