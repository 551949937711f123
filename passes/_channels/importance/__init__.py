"""Importance of channels: one file a family of criteria, and the table of them all."""
