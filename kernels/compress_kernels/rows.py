"""What the distillation row operation takes and gives (the operation itself: fused_kl.py)."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Divergences:
    """Weights of the divergences between teacher p and student q, and the two constants that shape some of them.

    kl: KL(p || q), forward; reverse_kl: KL(q || p); js: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p +
    (1 - beta) q, the generalized Jensen-Shannon divergence; skew_kl: KL(p || alpha p + (1 - alpha) q); skew_reverse_kl:
    KL(q || alpha q + (1 - alpha) p). The papers: fused_kl.py.

    Raises ValueError if alpha or beta is not strictly between 0 and 1: at the ends they are other terms of these.
    """

    kl: float = 1.0
    reverse_kl: float = 0.0
    js: float = 0.0
    skew_kl: float = 0.0
    skew_reverse_kl: float = 0.0
    beta: float = 0.5
    alpha: float = 0.1

    def __post_init__(self) -> None:
        for name in ("beta", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a number between 0 and 1, ends excluded")

    def scaled(self, factor: float) -> Divergences:
        """All weights times `factor`."""
        names = ("kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl")
        return replace(self, **{name: factor * getattr(self, name) for name in names})

    @property
    def weights(self) -> tuple[float, ...]:
        """The five weights."""
        return astuple(self)[:5]

    @property
    def only_forward(self) -> bool:
        """Whether nothing but the forward KL counts."""
        return not any(self.weights[1:])

    def as_list(self) -> list[float]:
        """All seven numbers in order, as an operation of torch.library takes them."""
        return list(astuple(self))


@dataclass(frozen=True)
class RowRequest:
    """One chunk of logits.

    student, teacher: [R, V] floating point, contiguous; labels: int64 [R] or None, a label outside [0, V) is ignored;
    temperature: of both softmaxes; terms: weights of their divergences; ce: weight of the cross-entropy of the plain
    softmax; want_gradient: overwrite `student` with the gradient of the weighted divergences + ce * CE to the logits;
    want_top1: compare the two argmaxes.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor | None
    temperature: float = 1.0
    terms: Divergences = Divergences()
    ce: float = 0.0
    want_gradient: bool = False
    want_top1: bool = False


@dataclass(frozen=True)
class RowResult:
    """Per row, fp32 [R]: the forward KL, the weighted sum of the divergences, the student's and the teacher's negative
    log-likelihood of the label (0 where it is ignored); top1_equal: bool [R], False unless it was wanted. A tie goes
    to the smaller index."""

    kl: Tensor
    weighted: Tensor
    nll_student: Tensor
    nll_teacher: Tensor
    top1_equal: Tensor
