"""The base layer: facts that passes, runtime and frontends share; it imports none of them."""
