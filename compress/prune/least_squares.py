"""Weighted ridge regression of a projection on what it should have given.

    min_W  sum_i w_i ||W a_i - t_i||^2  +  lam ||W - W0||^2,     lam = ridge * mean(diag H)

    H = sum_i w_i a_i a_i^T,  R = sum_i w_i a_i t_i^T   =>   W^T = (H + lam I)^-1 (R + lam W0^T)

Tokens carry the weight 1 / mean(t_i^2) of the residual stream they belong to: without it the massive activations of a
few positions (arXiv 2402.17762) rule both sums, and the fit serves them alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compress.moments import add_products, mirrored


def fitted(start: Tensor, tokens: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float) -> Tensor:
    """The best W [outputs, inputs], in fp32.

    Args:
        start: W0 [outputs, inputs], what the ridge pulls to.
        tokens: batches of a [windows, length, inputs], whose type is that of the products, t [windows, length, outputs]
            and w [windows, length].
        ridge: how strongly it pulls, relative to the size of the inputs.

    Returns:
        W; `start` where the system cannot be solved, or gives anything but numbers.
    """
    outputs, width = start.shape
    h, r = (torch.zeros(width, columns, device=start.device) for columns in (width, outputs))
    for a, t, w in tokens:
        x = _weighted(a, w, a.dtype)
        add_products(h, x, x)
        add_products(r, x, _weighted(t, w, x.dtype))
    return Ridge(mirrored(h), ridge).solve(r, start)


class Ridge:
    """H + lam I, factored once for any number of outputs."""

    def __init__(self, h: Tensor, ridge: float) -> None:
        exact = h.double()
        self.lam = ridge * exact.diagonal().mean()
        exact.diagonal().add_(self.lam)
        factor, failed = torch.linalg.cholesky_ex(exact)
        self.factor = None if bool(failed) else factor

    def solve(self, r: Tensor, start: Tensor) -> Tensor:
        """W [outputs, inputs] of the sum R [inputs, outputs]; see the head of this file.

        `start` where the system cannot be solved, or gives anything but numbers.
        """
        if self.factor is None:
            return start.float()
        solution = torch.cholesky_solve(r.double() + self.lam * start.double().t(), self.factor).t().float()
        return solution if bool(solution.isfinite().all()) else start.float()


def _weighted(x: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """sqrt(w) x; what came in fp16 leaves its range here, and goes on in bf16."""
    scaled = x.float() * weights.sqrt()[..., None]
    return scaled.to(torch.bfloat16 if dtype is torch.float16 else dtype)


def token_weights(stream: Tensor) -> Tensor:
    """1 / mean square of each token's residual stream [windows, length, width]: [windows, length]."""
    return 1 / stream.float().square().mean(-1).clamp_min(1e-12)
