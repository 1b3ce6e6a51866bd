"""Recovery: wins back what quantization cost, with adapters on a frozen quantized base."""
