"""Delivery: artifacts that a runtime loads, each reloaded in a fresh process and compared before it counts."""
