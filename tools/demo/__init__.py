"""The embedded default of `onnx-opt demo`: a small trained model and its labelled data."""
