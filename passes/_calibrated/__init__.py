"""Machinery of the passes that prepare a float graph for quantization with calibration data."""
