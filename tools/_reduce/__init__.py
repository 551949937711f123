"""Delta debugging of models: the smallest part of one that still shows a fault.

`run`: from file to file. `checks`: interestingness. `search`: the search. `reductions`: the table
of what can be taken away; `graph` and `details` do it.
"""

from __future__ import annotations

from .run import Reduced, reduce_model

__all__ = ["Reduced", "reduce_model"]
