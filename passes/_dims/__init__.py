"""The dimension solver: slices of tensors that must go together, and the way to take them out."""
