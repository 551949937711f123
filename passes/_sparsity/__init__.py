"""Which weights become zero: magnitudes, masks, whole rows and budgets over layers."""
