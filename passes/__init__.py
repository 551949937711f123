"""The compiler: graph in, graph out. Each public module is one pass; underscored modules are
machinery.
"""
