"""Machinery of `pack`: how a constant is stored, and the nodes that decode it at load."""
