"""The compiler: graph in, graph out. One public module is one pass; underscored modules are
machinery.
"""
