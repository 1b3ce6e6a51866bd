"""GGUF, llama.cpp's format: one file with weights, tokenizer and chat template."""
