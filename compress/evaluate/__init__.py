"""Measures what a model is worth: quality against the original, size, speed, and what it says."""
