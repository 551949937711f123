"""Delta debugging of models: the smallest part of one that still shows a fault.

`checks`: interestingness. `search`: the search. `reductions`: the table of what can be taken away;
`graph` and `details` do it.
"""
