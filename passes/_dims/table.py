"""Tables by operator: relations of its axes (`rule`), attributes after pruning (`update`)."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .relations import Relations
from .surgery import Surgery

Rule = Callable[[ir.Node, Relations], None]
Update = Callable[[ir.Node, Surgery], None]

RULES: dict[tuple[str, str], Rule] = {}
"""By (domain, op): the statement of a node's relations."""

UPDATES: dict[tuple[str, str], Update] = {}
"""By (domain, op): the update of a node's attributes and constants."""


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Enter a rule for the named ops; it is called once the shapes of all values are known."""

    def enter(function: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = function
        return function

    return enter


def update(*ops: str, domain: str = "") -> Callable[[Update], Update]:
    """Enter an update of the named ops' attributes and constants, called before a node is traced.

    Inputs have their new shapes then.
    """

    def enter(function: Update) -> Update:
        for op in ops:
            UPDATES[domain, op] = function
        return function

    return enter
