"""The exact product of INT8 matrices, by what the device multiplies fastest.

`torch._int_mm` on CUDA and on processors with AVX512-VNNI. Without VNNI it is a plain loop (3 GOP/s measured on two
cores with AVX2, where fp32 products reach 74 to 138 GFLOP/s): there the codes are multiplied in fp32, which is exact
as long as no sum leaves 24 bits, 1,024 products of two codes at a time, and the parts are added in int32.

Bytes for [M, K] x [N, K], beyond codes and result: 4 K (M + N) of codes in fp32, at most 1,024 columns of them at a
time, and 4 M N of a part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT_COLUMNS = 1024
"""128 x 128 x 1,024 = 2^24: every sum of so many products is an fp32 number."""
CUDA_ROWS = 17
"""`torch._int_mm` on CUDA takes no fewer rows,"""
CUDA_MULTIPLE = 8
"""and K and N of whole multiples alone."""
FAST_ON_CPU: bool = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
"""Whether `torch._int_mm` is more than a loop on this processor."""


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b^T exactly: int8 [M, K], [N, K] -> int32 [M, N]."""
    if not a.is_cuda:
        return torch._int_mm(a, b.t()) if FAST_ON_CPU else in_fp32(a, b)
    if a.shape[1] % CUDA_MULTIPLE or len(b) % CUDA_MULTIPLE:
        return in_fp32(a, b)
    rows = len(a)
    if rows < CUDA_ROWS:
        a = F.pad(a, (0, 0, 0, CUDA_ROWS - rows))
    return torch._int_mm(a, b.t())[:rows]


def in_fp32(a: Tensor, b: Tensor) -> Tensor:
    """The same by fp32 products that are exact."""
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for first in range(0, a.shape[1], EXACT_COLUMNS):
            part = slice(first, first + EXACT_COLUMNS)
            total += (a[:, part].float() @ b[:, part].float().t()).int()
    return total
