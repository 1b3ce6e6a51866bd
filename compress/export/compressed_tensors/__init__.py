"""compressed-tensors: the layout of quantized checkpoints that vLLM and transformers load."""
