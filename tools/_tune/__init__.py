"""The search for the best mix of sparsity and bits, layer by layer, within a budget."""
