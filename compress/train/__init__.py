"""Training, once for all: healing after pruning, QAT and QLoRA recovery share this module, trainer and resume."""
