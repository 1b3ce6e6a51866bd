"""Knowledge distillation on the output distribution, with the temperature of Hinton et al. (arXiv 1503.02531, sec. 2).

    loss = kl * T^2 * KL(softmax(t / T) || softmax(s / T)) + ce * CE(s, next token)

s, t: logits of student and teacher. The gradient of the softened KL with respect to s is (softmax(s/T) - softmax(t/T))
/ T, and the difference of the two softmaxes shrinks as 1/T too, so T^2 keeps its size the same for every temperature
and the mix with the cross-entropy means the same.

Full logits, temperature 1 and no cross-entropy is what heals language models best (Minitron, arXiv 2407.14679, sec. 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.errors import UserError

if TYPE_CHECKING:
    from compress_kernels import FusedLoss
    from torch import Tensor


@dataclass
class Logits:
    """Weights of the terms."""

    temperature: float = 1.0
    """Softens both distributions; 1 leaves them as they are."""
    kl: float = 1.0
    """Weight of the KL divergence from the teacher."""
    ce: float = 0.0
    """Weight of the cross-entropy with the text itself."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"loss.temperature={self.temperature} must be above zero.")
        if self.kl < 0 or self.ce < 0 or self.kl + self.ce == 0:
            raise UserError(f"loss.kl={self.kl} and loss.ce={self.ce}: both at least zero, and one above.")

    def __call__(
        self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], ids: Tensor, scored: Tensor
    ) -> FusedLoss:
        """Mean loss over the scored positions.

        Args:
            student: last hidden states [batch, length, width] and head weight [vocab, width].
            teacher: the same of the teacher; widths may differ, vocabularies may not.
            ids: tokens [batch, length], int64.
            scored: bool [batch, length - 1], whether position i predicts a real token.
        """
        from compress_kernels import fused_kl

        # position i predicts token i + 1: the last one predicts nothing we know
        hidden, teacher_hidden = student[0][:, :-1].flatten(0, 1), teacher[0][:, :-1].flatten(0, 1)
        return fused_kl(
            hidden,
            student[1],
            teacher_hidden,
            teacher[1],
            labels=ids[:, 1:].flatten() if self.ce else None,
            mask=scored.flatten(),
            temperature=self.temperature,
            kl=self.kl,
            ce=self.ce,
        )
