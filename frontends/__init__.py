"""Ways into and out of ONNX: a frontend turns a file, a torch module or a state dict into an ONNX
model and back (`onnx_file`, `from_torch`, `state_dicts`, `trainable`); training (`training`,
`gradients`) is what runs on such a module, to change a graph's weights.
"""
