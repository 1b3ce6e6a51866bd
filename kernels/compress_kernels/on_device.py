"""Triton launches on the current CUDA device: here that is made the one the tensors are on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Given = ParamSpec("Given")
Result = TypeVar("Result")


def on_its_device(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """`function`, called on the device of its first argument: a tensor, or a request that holds some.

    On CPU tensors (Triton's interpreter) nothing changes.
    """

    @wraps(function)
    def called(*given: Given.args, **named: Given.kwargs) -> Result:
        with torch.cuda.device_of(_tensor(given[0])):  # type: ignore[no-untyped-call]
            return function(*given, **named)

    return called


def _tensor(first: Any) -> Tensor:
    if isinstance(first, Tensor):
        return first
    return next(part for part in vars(first).values() if isinstance(part, Tensor))
