"""Low-rank factors of what quantization threw away, in closed form.

For a weight W [out, in] and its quantized form Q, with E = W - Q and H = mean x x^T over the layer's inputs, the
adapter starts at the best rank-r product:

    residual   min ||E - B A||_F              LoftQ's step (arXiv 2310.08659, alg. 1)
    weighted   min E_x ||(E - B A) x||^2      QERA-exact (arXiv 2410.06040, theorem 1), CALDERA (arXiv 2405.18886)

With H = L L^T the second is the truncated SVD of E L = U S V^T: B = U_r and A L = S_r V_r^T = U_r^T E L, so A = U_r^T E
and L is never inverted. The codes themselves stay as they are: the base that was measured is the base that ships.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 1e-2
"""Added to the diagonal of H, relative to its mean: inputs that calibration has not seen still count a little."""


def low_rank(residual: Tensor, rank: int, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Factors (A [rank, in], B [out, rank]) in fp32 whose product B A is nearest to `residual` [out, in].

    Args:
        residual: W - Q.
        rank: at most min(out, in); what is beyond that is zero.
        gram: second moment of the inputs [in, in]; weights the error. None: all directions alike.
    """
    e = residual.float()
    seen = e if gram is None else e @ _root(gram)
    u = _left_vectors(seen, min(rank, *e.shape))
    a = u.t() @ e
    # both factors alike in size, so that one learning rate suits both
    size = a.norm(dim=1).clamp_min(1e-20).sqrt()
    missing = rank - u.shape[1]
    a, b = a / size[:, None], u * size
    return torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))


def _root(gram: Tensor) -> Tensor:
    """L with L L^T = the damped gram matrix."""
    h = gram.float().clone()
    mean = h.diagonal().mean().clamp_min(1e-20)
    h.diagonal().add_(DAMPING * mean)
    return torch.linalg.cholesky(h)


def _left_vectors(x: Tensor, rank: int) -> Tensor:
    """The first left singular vectors [rows, rank], by the eigenvectors of the smaller Gram matrix."""
    if x.shape[0] <= x.shape[1]:
        return torch.linalg.eigh(x @ x.t()).eigenvectors[:, -rank:].flip(1)
    values, vectors = torch.linalg.eigh(x.t() @ x)
    values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    # directions that rounding alone has put there have no length to divide by
    real = values > len(x) * torch.finfo(values.dtype).eps * values[0].clamp_min(1e-30)
    return torch.where(real, (x @ vectors) / values.clamp_min(1e-30).sqrt(), 0.0)
