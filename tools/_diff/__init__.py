"""Differences of two models, told without running them.

`difference`: the whole. `match`: which node is which. `nodes`, `weights`, `file`: what differs.
"""
