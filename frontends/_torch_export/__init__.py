"""Export of torch modules to ONNX."""
