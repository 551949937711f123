"""Channel pruning on the dimension solver: which channels matter least, how many go, what makes up
for them.
"""
