"""The machinery of `quant`: placement rules as tables, weights, graph surgery."""
