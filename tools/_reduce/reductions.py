"""The table of reductions, those that take away most first."""

from __future__ import annotations

from . import details, graph
from .search import Reduction

REDUCTIONS = (
    Reduction("large constants", graph.count_large, graph.large_as_inputs),
    Reduction("outputs", graph.count_outputs, graph.without_outputs),
    Reduction("nodes", graph.count_nodes, graph.without_nodes),
    Reduction("functions", graph.count_functions, graph.inline_functions),
    Reduction("nodes", graph.count_nodes, graph.without_nodes),
    Reduction("branches", graph.count_branches, graph.inline_branch),
    Reduction("body nodes", graph.count_body_nodes, graph.without_body_nodes),
    Reduction("bypasses", graph.count_nodes, graph.bypass_nodes),
    Reduction("outputs", graph.count_outputs, graph.without_outputs),
    Reduction("inputs", graph.count_inputs, graph.without_inputs),
    Reduction("constants", graph.count_initializers, graph.initializers_as_inputs),
    Reduction("operands", details.count_operands, details.without_operands),
    Reduction("attributes", details.count_attributes, details.without_attributes),
    Reduction("lengths", details.count_lengths, details.shorter_axes),
    Reduction("numbers", details.count_numbers, details.simpler_numbers),
    Reduction("words", details.count_words, details.without_words),
)
