"""Apply a plan to a checkpoint, one tensor at a time: nothing but the tensor at hand need be in memory.

`pruned_model` does the same to a model that is loaded already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.arch import Architecture, Axis
from compress.arch.base import Config
from compress.errors import UserError
from compress.prune.plan import Plan
from compress.quiet import quiet_transformers


def prune_tensor(
    name: str, tensor: Tensor, plan: Plan, architecture: Architecture, config: Config
) -> tuple[str, Tensor] | None:
    """What becomes of one tensor of a checkpoint.

    Args:
        name: its name in the checkpoint.
        tensor: its value, of the dense model; dtype and device stay.
        plan: what stays.
        architecture: the model's family.
        config: of the *dense* model.

    Returns:
        (name in the pruned checkpoint, contiguous tensor), or None for a tensor of a dropped layer and for a buffer
        that models no longer hold. A tensor that is not cut is returned as it is, not copied.

    Raises:
        UserError: a tensor the family does not have, or of another shape than the config says.
    """
    axes = architecture.axes(config, name)
    layer, _ = architecture.split(name)
    if axes is None or (layer is not None and layer not in plan.layers):
        return None
    full = architecture.shape(config).widths
    expected = tuple(axis.size(full) for axis in axes)
    if tuple(tensor.shape) != expected:
        raise UserError(
            f"The checkpoint's tensor `{name}` has shape {tuple(tensor.shape)}; its config says {expected}.",
            "The config.json and the weights are not of the same model, or the weights are quantized.",
        )
    for dim, axis in enumerate(axes):
        if axis.kind is not None:
            kept, groups = plan.kept(axis.kind, layer), axis.groups(full)
            if len(kept) < groups:
                tensor = tensor.index_select(dim, entries(axis, kept, groups).to(tensor.device))
    renamed = name if layer is None else architecture.renumbered(name, plan.layers.index(layer))
    return renamed, tensor.contiguous()


def entries(axis: Axis, kept: Sequence[int], groups: int) -> Tensor:
    """Indices along a dimension laid out as [blocks, groups, unit] that belong to the kept groups: int64, ascending."""
    index = torch.arange(axis.blocks * groups * axis.unit).view(axis.blocks, groups, axis.unit)
    return index[:, list(kept)].reshape(-1)


def pruned_model(model: Any, architecture: Architecture, plan: Plan) -> Any:
    """What a loaded model becomes by a plan; the model itself stays as it is."""
    cuts = (prune_tensor(name, tensor, plan, architecture, model.config) for name, tensor in model.state_dict().items())
    with quiet_transformers():
        pruned = type(model).from_pretrained(
            None,
            config=architecture.pruned_config(model.config, plan),
            # a tensor that is not cut is still the model's own
            state_dict={kept[0]: kept[1].clone() for kept in cuts if kept is not None},
            dtype=model.dtype,
            device_map={"": str(model.device)},
            attn_implementation="sdpa",
        )
    return pruned.eval()
