"""Random valid models, and the judgement of what passes make of them.

`models`: a model from a seed. `builder`: graphs grown a node at a time, each run as it is added.
`recipes`: how to add one node or a few, a file a family. `judge`: a model through pipelines.
`official`: the test models of the onnx package. `crew`: processes that judge, and their deaths.
"""
