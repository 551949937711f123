"""The table of op rules: what each op says about axes (`rule`), and how it is mended after they
shrank (`mend`).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .relations import Relations
from .surgery import Surgery

Rule = Callable[[ir.Node, Relations], None]
Mend = Callable[[ir.Node, Surgery], None]

RULES: dict[tuple[str, str], Rule] = {}
MENDS: dict[tuple[str, str], Mend] = {}


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Enter a rule for the named ops. It is called with the shapes of all inputs and outputs
    known.
    """

    def enter(function: Rule) -> Rule:
        RULES.update({(domain, op): function for op in ops})
        return function

    return enter


def mend(*ops: str, domain: str = "") -> Callable[[Mend], Mend]:
    """Enter how attributes and constants of the named ops follow shrunk axes; called before the
    node is traced.
    """

    def enter(function: Mend) -> Mend:
        MENDS.update({(domain, op): function for op in ops})
        return function

    return enter
