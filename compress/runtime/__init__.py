"""A checkpoint or an artifact as a model that runs on our kernels."""
