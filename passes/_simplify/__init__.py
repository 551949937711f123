"""Machinery of `simplify` and the exact passes that it runs."""
