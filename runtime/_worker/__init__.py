"""The child process that runs ONNX Runtime, and how it is talked to."""
