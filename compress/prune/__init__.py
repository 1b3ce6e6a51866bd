"""Structured pruning: score groups (`importance`), choose what stays (`widths`, `plan`), cut tensors (`surgery`)."""
