"""Makes the optimizer a config names, and nothing else: a config that could name any callable is code execution."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from compress.errors import UserError

if TYPE_CHECKING:
    import torch

ALLOWED_PACKAGES = ("torch.optim", "bitsandbytes.optim")


def make_optimizer(
    spec: Mapping[str, Any], parameters: Iterable[torch.nn.Parameter], rate: float
) -> torch.optim.Optimizer:
    """The optimizer of `spec` over `parameters`.

    Args:
        spec: `_target_` is the full name of an optimizer class in torch.optim or bitsandbytes.optim, the rest its
            keyword arguments.
        parameters: what trains.
        rate: peak learning rate.

    Raises:
        UserError: the name is not an optimizer of an allowed package, or it refuses the arguments.
    """
    import torch

    arguments = {key: value for key, value in spec.items() if key != "_target_"}
    kind = _find_class(str(spec.get("_target_", "")))
    if issubclass(kind, torch.optim.AdamW) and not {"fused", "foreach", "capturable"} & arguments.keys():
        arguments["fused"] = True  # one pass over the state instead of seven
    if kind is torch.optim.Muon:
        from compress.train.muon import MuonAndAdamW

        kind = MuonAndAdamW
    try:
        optimizer = kind(groups(parameters, rate), lr=rate, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer {spec['_target_']} refuses its arguments: {error}.") from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def check_optimizer(spec: Mapping[str, Any]) -> None:
    """Refuse an optimizer that does not take its arguments, or cannot make a plain step, before anything is computed.

    Raises:
        UserError: as `make_optimizer`, or it needs more than gradients.
    """
    import torch

    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = make_optimizer(spec, [parameter], 1e-3)
    if type(optimizer).__module__.startswith("bitsandbytes."):
        return  # they want the device they will run on
    parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"optimizer {spec['_target_']} cannot train here: {error}.", "Take torch.optim.AdamW, or leave it out."
        ) from error


def groups(parameters: Iterable[torch.nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """What trains, by its rate: a parameter's attribute `rate_factor`, 1 if it has none, times `rate`."""
    found: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            found.setdefault(getattr(parameter, "rate_factor", 1.0), []).append(parameter)
    return [{"params": members, "lr": rate * factor} for factor, members in found.items()]


def _find_class(target: str) -> Any:
    import torch

    hint = f"Give _target_ as a class of {' or '.join(ALLOWED_PACKAGES)}, such as torch.optim.AdamW."
    module_name, _, name = target.rpartition(".")
    if not any(module_name == p or module_name.startswith(p + ".") for p in ALLOWED_PACKAGES):
        raise UserError(f"optimizer {target!r} is not on the list of allowed packages.", hint)
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"there is no optimizer {target!r}.", hint) from error
    # a name can be re-exported from anywhere: what counts is where the class itself comes from
    origin = getattr(found, "__module__", "")
    allowed = (
        inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and origin.startswith(ALLOWED_PACKAGES)
    )
    if not allowed:
        raise UserError(f"{target!r} is not an optimizer.", hint)
    return found
