"""What is delivered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from compress.errors import UserError


class Merge(str, Enum):
    """What happens to an adapter."""

    none = "none"
    dense = "dense"


@dataclass
class HFExport:
    """A Hugging Face folder that plain `transformers` (and `peft`) loads."""

    merge: Merge = Merge.none
    """none: adapter beside the 4-bit base, as measured; dense: adapter added to the decoded base, a bf16 model."""
    max_kl: float = 5e-3
    """Largest mean KL between the reloaded artifact and the model in the pipeline, in nats."""
    probe_tokens: int = 256
    """Tokens of held-out text both are compared on."""

    def __post_init__(self) -> None:
        if not self.max_kl > 0:
            raise UserError(f"export.max_kl={self.max_kl} must be above zero.")
        if self.probe_tokens < 2:
            raise UserError(f"export.probe_tokens={self.probe_tokens} must be at least 2.")
