"""Fit of a changed model's layers to what the original computes: least squares, layer by layer."""
