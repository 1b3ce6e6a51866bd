"""The fused distillation loss against plain torch: `python kernels/bench/fused_kl.py [--tokens 2048] [--vocab 49152]`.

Plain torch is what a training loop writes: project both models, F.kl_div on fp32 log-softmaxes, backward; "plain,
looped" does it for 256 tokens at a time and lets gradients add up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import compress_kernels as ck
import torch
import torch.nn.functional as F
from record import alternate, peak_bytes, record
from torch import Tensor


class Case:
    """Random hidden states and heads, a student near its teacher."""

    def __init__(self, tokens: int, vocab: int, width: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(tokens, width, generator=generator)
        head = torch.randn(vocab, width, generator=generator) * (2.5 / width**0.5)
        self.hidden = hidden.to(dtype).requires_grad_()
        self.head = head.to(dtype).requires_grad_()
        self.teacher_hidden = (hidden + 0.3 * torch.randn(tokens, width, generator=generator)).to(dtype)
        self.teacher_head = head.to(dtype)

    def clear(self) -> None:
        """Drop the gradients of the last call."""
        self.hidden.grad = self.head.grad = None

    def fused(self) -> Tensor:
        """Our loss and its gradients."""
        self.clear()
        loss = ck.fused_kl(self.hidden, self.head, self.teacher_hidden, self.teacher_head).total
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def looped(self, rows: int) -> Tensor:
        """Plain torch, `rows` tokens at a time."""
        self.clear()
        total = torch.zeros(())
        for begin in range(0, self.hidden.shape[0], rows):
            student, teacher = (x[begin : begin + rows] for x in (self.hidden, self.teacher_hidden))
            with torch.no_grad():
                target = F.log_softmax((teacher @ self.teacher_head.t()).float(), dim=1)
            logs = F.log_softmax((student @ self.head.t()).float(), dim=1)
            loss = F.kl_div(logs, target, log_target=True, reduction="sum") / self.hidden.shape[0]
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def watched(self) -> Tensor:
        """Our loss without gradients."""
        with torch.no_grad():
            return ck.fused_kl(self.hidden, self.head, self.teacher_hidden, self.teacher_head).total

    def returned_bytes(self) -> int:
        """Size of the two gradients a call returns."""
        return sum(x.numel() * x.element_size() for x in (self.hidden, self.head))


def main() -> None:
    """Forward and backward in ms, and memory above inputs and returned gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: list[tuple[str, str, float, str, float | None]] = []
    for dtype in (torch.bfloat16, torch.float32):
        case = Case(options.tokens, options.vocab, options.width, dtype)
        forms: dict[str, Callable[[], Tensor]] = {
            "plain, whole": lambda case=case: case.looped(options.tokens),  # type: ignore[misc]
            "plain, looped": lambda case=case: case.looped(256),  # type: ignore[misc]
            "compress_kernels": case.fused,
            "compress_kernels eval": case.watched,
        }
        peaks = {}
        case.fused()  # loads and compiles what there is to load and compile
        for name, form in forms.items():
            case.clear()
            returned = 0 if name.endswith("eval") else case.returned_bytes()
            peaks[name] = max(0, peak_bytes(form) - returned) / 2**20
        for name, seconds in alternate(forms, options.rounds).items():
            label = f"{options.tokens}x{options.vocab} D={options.width} {str(dtype).removeprefix('torch.')}"
            rows.append((label, name, seconds * 1e3, "ms", peaks[name]))
    record("fused_kl", rows)


if __name__ == "__main__":
    main()
