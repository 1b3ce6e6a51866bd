"""The original's own text, written once per model, amount and seed, and kept in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from compress.store import Store, content_key

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import Tensor

    from compress.keys import Known
    from compress.stage import Progress


VERSION = 1
"""Of how it is written: another one makes text, and what was made from it, anew."""


@dataclass
class OwnText:
    """Written when it is first asked for."""

    store: Store
    settings: Any
    """How much, in windows of which length."""
    original: Known
    run: Mapping[str, Any]
    """What else a result depends on."""
    fabric: Fabric
    progress: Progress
    _windows: Tensor | None = field(default=None, init=False)

    @property
    def inputs(self) -> dict[str, Any]:
        """What it depends on besides the run."""
        return asdict(self.settings) | {"original": self.original.key, "version": VERSION}

    @property
    def key(self) -> str:
        """Identifies the text."""
        return content_key({"own": self.inputs, **self.run})

    def written(self) -> bool:
        """Whether the store has it."""
        return self.store.recall("own_text", self.key) is not None

    def __call__(self) -> Tensor:
        """Windows [n, length], int64, of about `settings.tokens` tokens."""
        if self._windows is None:
            self._windows = self._kept()
        return self._windows

    def _kept(self) -> Tensor:
        import torch

        from compress.data.windows import readable

        original, key = self.original.checkpoint, self.key
        length = readable(self.settings.length, original.config)
        count = self.settings.tokens // length
        if not count:
            return torch.zeros(0, length, dtype=torch.int64)
        with self.store.locked(key):
            kept = self.store.recall("own_text", key)
            if kept is None:
                from compress.runtime.loading import load_original
                from compress.runtime.sampling import sample_windows

                with self.progress.bar("the original writes text of its own", count * length) as advance:
                    model = load_original(original, self.fabric.device)
                    # the run's seed is in the key
                    windows = sample_windows(model, original.tokenizer(), count, length, int(key[:8], 16), advance)
                kept = {"windows": windows.tolist()}
                self.store.remember("own_text", key, kept)
        return torch.tensor(kept["windows"], dtype=torch.int64)
