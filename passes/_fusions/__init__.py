"""Patterns of transformers, each found by its last node, and the operator that does the same."""
