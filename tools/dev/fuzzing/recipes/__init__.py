"""How to add one node or a few: one function a recipe, one file a family.

A recipe takes the builder, picks values that fit and adds nodes; what does not run is Rejected.
"""

from . import bait, elementwise, flow, layers, movement, reduction
from .registry import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "Recipe",
    "bait",
    "elementwise",
    "flow",
    "layers",
    "movement",
    "reduction",
]
