"""How much each channel matters: one file a criterion."""
