"""Many models: each in a process of its own, and none twice."""
