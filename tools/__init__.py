"""The driver `optimize()`, the click commands, and their tables: everything that people call."""
