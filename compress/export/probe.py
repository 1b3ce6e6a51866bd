"""What an artifact must answer, kept inside it: `mode=verify` repeats the round trip without the pipeline's model.

Of every position the TOP likeliest tokens and their log-probabilities are kept (0.3 MB for 256 positions instead of
25 MB for a vocabulary of 49k). The KL over those tokens and all others taken as one is never above the whole KL (the
data processing inequality), and close to it, since what is left has little mass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.durable import readable_as_others
from compress.export.verify import RoundTrip, judged

if TYPE_CHECKING:
    from torch import Tensor

    from compress.export.base import Expectation

FILE = Path("verification") / "probe.safetensors"
"""In a folder of its own: some runtimes read every safetensors file beside the weights."""
TOP = 128


@dataclass(frozen=True)
class Probe:
    """Tokens [length], and what comes after each of them."""

    ids: Tensor
    tokens: Tensor
    """The likeliest ones, int32 [length, TOP]."""
    logprobs: Tensor
    """Theirs, fp32 [length, TOP]."""
    facts: dict[str, Any]
    """`runtime`, `tolerance`, and `scheme`, if the answers are an emulation's."""

    def compare(self, logits: Tensor) -> RoundTrip:
        """Compare with the runtime's logits [length, vocab]."""
        import torch

        if logits.shape[0] != len(self.ids) or int(self.tokens.max()) >= logits.shape[1]:
            return RoundTrip.failed(f"logits of shape {list(logits.shape)} for {len(self.ids)} tokens")
        p = self.logprobs.double()
        every = logits.double().log_softmax(-1)
        q = every.gather(1, self.tokens.long())
        rest_p, rest_q = (1 - p.exp().sum(-1)).clamp_min(0), (1 - q.exp().sum(-1)).clamp_min(1e-300)
        kl = (p.exp() * (p - q)).sum(-1) + torch.special.xlogy(rest_p, rest_p) - rest_p * rest_q.log()
        return judged(kl, every.argmax(-1) == self.tokens[:, 0], self.facts["tolerance"])


def keep(folder: Path, ids: Tensor, expectation: Expectation, facts: dict[str, Any]) -> None:
    """Write the probe of an artifact. `ids` [1, length]."""
    import torch
    from safetensors.torch import save_file

    answers = expectation.pipeline if expectation.emulated is None else expectation.emulated
    top = answers.double().log_softmax(-1).topk(min(TOP, answers.shape[-1]))
    tensors = {"ids": ids[0], "tokens": top.indices.to(torch.int32), "logprobs": top.values.float()}
    facts = facts | {"tolerance": expectation.tolerance, "scheme": expectation.scheme}
    (folder / FILE).parent.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / FILE, metadata={"facts": json.dumps(facts)})
    readable_as_others(folder / FILE)


def kept(folder: Path) -> Probe | None:
    """The probe of an artifact; None for one that has none."""
    from safetensors import safe_open

    if not (folder / FILE).is_file():
        return None
    with safe_open(folder / FILE, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in ("ids", "tokens", "logprobs")}
        return Probe(**tensors, facts=json.loads(opened.metadata()["facts"]))
