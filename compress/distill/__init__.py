"""Distillation: heals a pruned model against the original."""
