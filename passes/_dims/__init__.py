"""The dimension solver: which slices of which tensors must go together, and how to take them
out.
"""
