"""Weighted ridge regression of a projection on what it should have given.

    min_W  sum_i w_i ||W a_i - t_i||^2  +  lam ||W - W0||^2,     lam = ridge * mean(diag H)

    H = sum_i w_i a_i a_i^T,  R = sum_i w_i a_i t_i^T   =>   W^T = (H + lam I)^-1 (R + lam W0^T)

Tokens carry the weight 1 / mean(t_i^2) of the residual stream they belong to: without it the massive activations of a
few positions (arXiv 2402.17762) rule both sums, and the fit serves them alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class NormalEquations:
    """The two sums, over any number of batches."""

    h: Tensor
    r: Tensor

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device | None = None) -> NormalEquations:
        """For inputs [*, inputs] and targets [*, outputs]."""
        return cls(torch.zeros(inputs, inputs, device=device), torch.zeros(inputs, outputs, device=device))

    def add(self, a: Tensor, t: Tensor, weights: Tensor) -> None:
        """Take in inputs [n, inputs], targets [n, outputs] and token weights [n]."""
        a, t = a.float(), t.float()
        weighted = a * weights[:, None]
        self.h += weighted.t() @ a
        self.r += weighted.t() @ t

    def solve(self, start: Tensor, ridge: float) -> Tensor:
        """The best W [outputs, inputs]; `start` [outputs, inputs] is what the ridge pulls it to.

        A system that cannot be solved, or gives anything but numbers, leaves `start` as it is.
        """
        lam = ridge * self.h.diagonal().mean()
        h, r = self.h.double().clone(), self.r.double() + lam.double() * start.double().t()
        h.diagonal().add_(lam.double())
        factor, failed = torch.linalg.cholesky_ex(h)
        if bool(failed):
            return start
        solution = torch.cholesky_solve(r, factor).t().to(start.dtype)
        return solution if bool(solution.isfinite().all()) else start


def token_weights(stream: Tensor) -> Tensor:
    """1 / mean square of each token's residual stream [batch, length, width], flattened [batch * length]."""
    weights = 1 / stream.float().square().mean(-1).clamp_min(1e-12)
    return weights.flatten() / weights.numel()
