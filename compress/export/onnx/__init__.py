"""ONNX: one graph that reads and writes, with its KV cache as inputs and outputs."""
