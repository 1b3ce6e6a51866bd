"""Quantization: algorithms that put a model's linear layers on a grid."""
