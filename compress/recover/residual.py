"""Low-rank factors of what quantization threw away, in closed form.

For a weight W [out, in] and its quantized form Q, the adapter starts at the best rank-r approximation of W - Q:

    plain     min ||W - Q - B A||_F             SVD of W - Q          (LoftQ's step, arXiv 2310.08659, alg. 1)
    weighted  min ||(W - Q - B A) S||_F,        SVD of (W - Q) S, A = V^T S^-1
              S = diag(rms of every input)      (LQER / QERA-approx, arXiv 2402.02446, 2410.06040)

The codes themselves stay as they are: the base that was measured is the base that ships.
"""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank(residual: Tensor, rank: int, input_rms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Factors (A [rank, in], B [out, rank]) in fp32 whose product B A is nearest to `residual` [out, in].

    Args:
        residual: W - Q.
        rank: at most min(out, in).
        input_rms: root mean square of each input feature [in]; weights the error. None: all alike.
    """
    scale = torch.ones(residual.shape[1]) if input_rms is None else input_rms.float().cpu()
    # an input that is never seen may not be divided by
    scale = scale.clamp_min(1e-4 * float(scale.max().clamp_min(1e-30)))
    u, s, vh = torch.linalg.svd(residual.float().cpu() * scale, full_matrices=False)
    root = s[:rank].sqrt()
    return (root[:, None] * vh[:rank]) / scale, u[:, :rank] * root
