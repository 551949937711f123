"""Everything that turns a file or another framework into an ONNX model and back."""
