"""Packaging: from a model file to a bundle."""
