"""Which implementation runs: the explicit table of backends and the rule that picks one for a device.

`COMPRESS_KERNELS=reference|cpu|triton` forces one. Otherwise a CUDA tensor gets Triton, and a CPU tensor the C kernels:
both take a C compiler, and where there is none it is the plain torch reference, with one warning.
"""

from __future__ import annotations

import importlib
import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from compress_kernels.native import NativeBuildError, load_library
from compress_kernels.rows import RowRequest, RowResult

if TYPE_CHECKING:
    from compress_kernels.grid_weight import LatentGradients, LatentWeight
    from compress_kernels.sweep import Sweep, Swept

BACKENDS: dict[str, str] = {
    "reference": "compress_kernels.reference",
    "cpu": "compress_kernels.cpu",
    "triton": "compress_kernels.triton_backend",
}
ENVIRONMENT = "COMPRESS_KERNELS"


class Backend(Protocol):
    """What each backend module offers; reference.py says what each function does. Tensors are contiguous."""

    def quantize_4bit(self, weights: Tensor, block: int, kind: str) -> tuple[Tensor, Tensor]:
        """Codes and block scales."""
        ...

    def encode_4bit(self, weights: Tensor, absmax: Tensor, block: int, kind: str) -> Tensor:
        """Codes for given scales."""
        ...

    def dequantize_4bit(
        self, codes: Tensor, absmax: Tensor, count: int, block: int, kind: str, dtype: torch.dtype
    ) -> Tensor:
        """Flat weights."""
        ...

    def quantize_absmax(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """8-bit codes and nested scales."""
        ...

    def dequantize_absmax(self, codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
        """Effective block scales."""
        ...

    def quantize_rows_int8(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Per-token codes and absmax."""
        ...

    def linear_int8(self, x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
        """The INT8 layer."""
        ...

    def decode_rows_4bit(
        self,
        codes: Tensor,
        scales: Tensor,
        table: Tensor,
        block: int,
        offsets: Tensor | None,
        ids: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Rows of a 4-bit matrix."""
        ...

    def linear_4bit(
        self,
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        table: Tensor,
        block: int,
        offsets: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """The 4-bit layer."""
        ...

    def divergence_rows(self, request: RowRequest) -> RowResult:
        """Divergence, likelihoods and gradient of one chunk."""
        ...

    def sweep_columns(self, request: Sweep) -> Swept:
        """Levels of one block of columns."""
        ...

    def round_weight(self, grid: LatentWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A weight on its grid, and its codes."""
        ...

    def round_weight_backward(self, grid: LatentWeight, codes: Tensor, gradient: Tensor) -> LatentGradients:
        """Its gradients."""
        ...


@cache
def _cpu_choice() -> str:
    try:
        load_library()
    except NativeBuildError as error:
        warnings.warn(f"compress_kernels: {error}; using the slower plain torch reference", stacklevel=2)
        return "reference"
    return "cpu"


@cache
def _cuda_choice() -> str:
    """Triton compiles its launcher with the system's C compiler when it first starts: a slim container has none."""
    if not torch.cuda.is_available():
        return "triton"
    try:
        import triton

        _ = triton.runtime.driver.active.utils
    except Exception as error:  # whatever its build, or a missing package, may raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        warnings.warn(
            f"compress_kernels: Triton cannot start ({said}); using the slower plain torch reference. It needs the "
            "package triton, a C compiler (gcc, or CC) and Python's headers",
            stacklevel=2,
        )
        return "reference"
    return "triton"


def backend_name(device: torch.device | str) -> str:
    """The backend that operations on `device` use: "reference", "cpu" or "triton". Part of cache keys.

    Raises ValueError if COMPRESS_KERNELS names an unknown backend or one that cannot run on `device`.
    """
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    forced = os.environ.get(ENVIRONMENT, "")
    if forced:
        if forced not in BACKENDS:
            raise ValueError(f"{ENVIRONMENT}={forced!r} is no backend: set one of {', '.join(BACKENDS)}, or unset it")
        if forced == "cpu" and kind != "cpu":
            raise ValueError(f"{ENVIRONMENT}=cpu cannot run on a {kind} tensor: unset it, or set triton or reference")
        if forced == "triton" and kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"{ENVIRONMENT}=triton needs CUDA tensors, or TRITON_INTERPRET=1 on a CPU")
        return forced
    if kind == "cuda":
        return _cuda_choice()
    return _cpu_choice() if kind == "cpu" else "reference"


def backend(device: torch.device) -> Backend:
    """The module that implements the operations on `device`; Triton is imported only here."""
    return _module(backend_name(device))


@cache
def _module(name: str) -> Backend:
    return cast(Backend, importlib.import_module(BACKENDS[name]))
