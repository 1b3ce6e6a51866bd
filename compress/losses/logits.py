"""Knowledge distillation on the output distribution, with the temperature of Hinton et al. (arXiv 1503.02531, sec. 2).

    loss = T^2 * sum_i w_i D_i(softmax(t / T), softmax(s / T)) + ce * CE(s, next token)

s, t: logits of student and teacher; p, q: the softened distributions of teacher and student. The divergences D, mixed
freely by their weights w:

    kl               KL(p || q)                                        Hinton; Minitron, arXiv 2407.14679, sec. 4
    reverse_kl       KL(q || p)                                        MiniLLM, arXiv 2306.08543
    js               b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q      GKD, arXiv 2306.13649; b: js_beta
    skew_kl          KL(p || a p + (1 - a) q)                          DistiLLM, arXiv 2402.03898; a: skew_alpha
    skew_reverse_kl  KL(q || a q + (1 - a) p)                          the same

The gradient of a softened divergence with respect to s is its gradient to s / T over T, and the difference of the two
softmaxes shrinks as 1/T too, so T^2 keeps its size the same for every temperature and the mix with the cross-entropy
means the same.

Full logits, forward KL, temperature 1 and no cross-entropy is what keeps most of the teacher (Minitron). Cross-entropy
beside it lowers the perplexity of text like the training's further, at a little more KL: a model that is healed on few
tokens learns from the text what the teacher, too, would have had to learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compress.errors import UserError

if TYPE_CHECKING:
    from compress_kernels import Divergences, FusedLoss, SparseTargets
    from torch import Tensor

DIVERGENCES = ("kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl")


@dataclass
class Logits:
    """Weights of the terms."""

    temperature: float = 1.0
    """Softens both distributions; 1 leaves them as they are."""
    kl: float = 1.0
    """Weight of the KL divergence from the teacher."""
    ce: float = 0.0
    """Weight of the cross-entropy with the text itself."""
    reverse_kl: float = 0.0
    """Weight of the KL divergence of the teacher from the student: seeks modes instead of covering them."""
    js: float = 0.0
    """Weight of the generalized Jensen-Shannon divergence."""
    js_beta: float = 0.5
    """Its share of the teacher in the mixture, between 0 and 1."""
    skew_kl: float = 0.0
    """Weight of the KL divergence of a mixture of both from the teacher."""
    skew_reverse_kl: float = 0.0
    """Weight of the KL divergence of a mixture of both from the student."""
    skew_alpha: float = 0.1
    """Share of the distribution itself in the mixtures of the two skewed terms, between 0 and 1."""

    weighted: ClassVar[tuple[str, ...]] = (*DIVERGENCES, "ce")
    """The fields that are weights of terms."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"loss.temperature={self.temperature} must be above zero, and a number.")
        weights = {name: getattr(self, name) for name in self.weighted}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            given = ", ".join(f"loss.{name}={weight}" for name, weight in weights.items())
            raise UserError(f"{given}: all at least zero, and one above.", "The default is loss.kl=1.")
        for name in ("js_beta", "skew_alpha"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(
                    f"loss.{name}={getattr(self, name)} is a share in a mixture: above 0 and below 1.",
                    "At the ends the term is loss.kl or loss.reverse_kl, or nothing.",
                )

    def divergences(self) -> Divergences:
        """The weights as the kernel takes them."""
        from compress_kernels import Divergences

        weights = {name: getattr(self, name) for name in DIVERGENCES}
        return Divergences(**weights, beta=self.js_beta, alpha=self.skew_alpha)

    def __call__(
        self,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor] | SparseTargets,
        ids: Tensor,
        scored: Tensor,
    ) -> FusedLoss:
        """Mean loss over the scored positions.

        Args:
            student: last hidden states [batch, length, width] and head weight [vocab, width].
            teacher: the same of the teacher (widths may differ, vocabularies may not), or what a store holds of it.
            ids: tokens [batch, length], int64.
            scored: bool [batch, length - 1], whether position i predicts a real token.
        """
        from compress_kernels import SparseTargets, fused_kl, sparse_kl

        # position i predicts token i + 1: the last one predicts nothing we know
        hidden = student[0][:, :-1].flatten(0, 1)
        labels, mask = ids[:, 1:].flatten() if self.ce else None, scored.flatten()
        terms = self.divergences()
        if isinstance(teacher, SparseTargets):
            return sparse_kl(
                hidden,
                student[1],
                teacher,
                labels=labels,
                mask=mask,
                temperature=self.temperature,
                terms=terms,
                ce=self.ce,
            )
        return fused_kl(
            hidden,
            student[1],
            teacher[0][:, :-1].flatten(0, 1),
            teacher[1],
            labels=labels,
            mask=mask,
            temperature=self.temperature,
            terms=terms,
            ce=self.ce,
        )
