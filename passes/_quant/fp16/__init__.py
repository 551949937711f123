"""Conversion of a model to half precision."""
