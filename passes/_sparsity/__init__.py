"""Choice of the weights that become zero: magnitudes, masks, rows, budgets over layers."""
