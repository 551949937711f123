"""Bundles: a model with everything that it needs to run, and to prove that it runs as it should."""
