"""Parts of an input by what they add to a model's answer, and how far another model agrees.

`inputs`: kinds of inputs and their parts. `target`: the number that is explained. `methods`: how
much of it each part is. `agreement`: figures of two explanations. `explain`: the whole.
"""
