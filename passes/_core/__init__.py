"""The ground floor: facts that passes, runtime and frontends share; it imports none of them."""
