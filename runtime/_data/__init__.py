"""Readers of calibration and evaluation data, one file a kind of source."""
