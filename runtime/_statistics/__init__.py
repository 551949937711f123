"""Statistics of activations, gathered batch by batch."""
