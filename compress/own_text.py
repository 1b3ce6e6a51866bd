"""The original's own text, written once per model, amount and seed, and kept in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.stage import Progress
    from compress.store import Store


def own_text(store: Store, key: str, settings: Any, original: Checkpoint, fabric: Fabric, progress: Progress) -> Tensor:
    """Windows [n, length], int64, of about `settings.tokens` tokens."""
    import torch

    from compress.data.windows import readable

    length = readable(settings.length, original.config)
    count = settings.tokens // length
    if not count:
        return torch.zeros(0, length, dtype=torch.int64)
    with store.locked(key):
        kept = store.recall("own_text", key)
        if kept is None:
            from compress.runtime.loading import load_model
            from compress.runtime.sampling import sample_windows

            with progress.bar("the original writes text of its own", count * length) as advance:
                model = load_model(original.folder, device=fabric.device)
                # the run's seed is in the key
                windows = sample_windows(model, original.tokenizer(), count, length, int(key[:8], 16), advance)
            kept = {"windows": windows.tolist()}
            store.remember("own_text", key, kept)
    return torch.tensor(kept["windows"], dtype=torch.int64)
