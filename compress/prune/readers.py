"""The projections that read the residual stream, refitted to the stream that a pruned model really has.

Behind every norm of a layer, one linear map M is fitted that gives the original's normed stream from the student's: as
the stream drifts, and above all where channels of it are gone, the rest foretells a part of what is missing. It costs
nothing: each reader becomes W M. An output head of its own is such a reader behind the last norm.

    min_W  mean_i ||W y_i - W_t z_i||^2  +  lam ||W - W0||^2,     lam = ridge * mean(diag H)

    H = mean_i y_i y_i^T,  R = mean_i y_i z_i^T   =>   W^T = (H + lam I)^-1 (R W_t^T + lam W0^T)

y is what the student's norm gives, z what the original's gives (all channels), W_t the original's weights on the rows
that stay, W0 the student's. Least squares with the compressed model's own inputs against the original's outputs: as in
calibrated quantization (GPTAQ, arXiv 2504.02692), here for pruning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.moments import sum_of_products
from compress.prune.least_squares import Ridge
from compress.prune.surgery import prune_tensor

if TYPE_CHECKING:
    from compress.prune.plan import Plan

Normed = list[Tensor]
"""What a norm gives, batch by batch [windows, length, hidden]."""
ROWS = 8192
"""Of a reader, solved at a time."""


class Readers:
    """Of one pruned model.

    Args:
        student: the pruned model.
        teacher: the model it was cut from.
        plan: how it was cut.
        ridge: how strongly readers are held as they are, relative to the size of their inputs.
    """

    def __init__(self, student: Any, teacher: Any, plan: Plan, ridge: float) -> None:
        self.student, self.teacher, self.plan, self.ridge = student, teacher, plan, ridge
        self.architecture = adapter_for(teacher.config)
        self.modules = self.architecture.modules
        whole = self.architecture.shape(teacher.config).widths.hidden
        self.rows_alone = replace(plan, hidden=tuple(range(whole)))
        """Leaves all channels of the stream, so that the original's readers are cut in their rows alone."""

    def norms(self, layer: int) -> list[tuple[str, tuple[str, ...]]]:
        """Of a layer: each norm's path and the readers behind it, named within the layer."""
        behind = {fold.source: fold.targets for fold in self.modules.folds}
        within = zip(self.modules.norms(layer), self.modules.residual_norms, strict=True)
        return [(path, behind.get(name, ())) for path, name in within]

    @contextmanager
    def original(self, layer: int) -> Iterator[list[Normed]]:
        """Collects what the original's norms give in a layer that runs inside; nothing in a layer that goes."""
        norms = self.norms(layer) if layer in self.plan.layers else []
        found: list[Normed] = [[] for _ in norms]
        handles = []
        for (path, _), given in zip(norms, found, strict=True):

            def keep(_: nn.Module, args: tuple[Any, ...], out: Tensor, given: Normed = given) -> None:
                del args
                given.append(out)

            handles.append(self.teacher.get_submodule(path).register_forward_hook(keep))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def refit(self, index: int, norm: int, y: Normed, z: Normed) -> None:
        """Solve the readers behind one norm.

        Args:
            index: of the student's layer.
            norm: which of the layer's.
            y: what the student's norm gives.
            z: what the original's gave for the same tokens.
        """
        layer = self.plan.layers[index]
        here, there = self.modules.layer(index), self.modules.layer(layer)
        paths = [(f"{here}.{name}", f"{there}.{name}") for name in self.norms(layer)[norm][1]]
        pairs = [(self.student.get_submodule(own), self.teacher.get_submodule(path), path) for own, path in paths]
        if pairs:
            self._solve(pairs, y, z, self.modules.conv1d)

    def refit_head(self, y: Normed, z: Normed) -> None:
        """The same for an output head of its own, behind the last norm."""
        heads = self.student.get_output_embeddings(), self.teacher.get_output_embeddings()
        self._solve([(*heads, self.modules.head)], y, z, conv1d=False)

    def _solve(self, pairs: Sequence[tuple[Any, Any, str]], y: Normed, z: Normed, conv1d: bool) -> None:
        """Readers of one stream: (the student's, the original's, the original's path)."""
        biased = any(module.bias is not None for module, _, _ in pairs)
        seen, meant = _constant(y, biased), _constant(z, biased)
        ridge, r = Ridge(sum_of_products(seen, seen), self.ridge), sum_of_products(seen, meant)
        for module, original, path in pairs:
            goals, goal_bias = self._rows(original, path, conv1d)
            own = module.weight.t() if conv1d else module.weight
            for first in range(0, len(own), ROWS):  # a head has as many as there are words
                part = slice(first, first + ROWS)
                goal = _with_bias(goals[part], None if goal_bias is None else goal_bias[part], biased)
                start = _with_bias(own[part], None if module.bias is None else module.bias[part], biased)
                found = ridge.solve(r @ goal.t(), start)
                own[part].copy_(found[:, :-1] if biased else found)
                if module.bias is not None:
                    module.bias[part].copy_(found[:, -1])

    def _rows(self, module: Any, path: str, conv1d: bool) -> tuple[Tensor, Tensor | None]:
        """The original's weights [rows that stay, all channels], and its bias."""
        cut = {}
        for part in ("weight", "bias"):
            if getattr(module, part) is not None:
                name, config = f"{path}.{part}", self.teacher.config
                kept = prune_tensor(name, getattr(module, part), self.rows_alone, self.architecture, config)
                assert kept is not None
                cut[part] = kept[1]
        return cut["weight"].t() if conv1d else cut["weight"], cut.get("bias")


def _constant(states: Sequence[Tensor], wanted: bool) -> list[Tensor]:
    """With a constant input at the end, whose weight is the bias."""
    return [torch.cat([x, torch.ones_like(x[..., :1])], -1) for x in states] if wanted else list(states)


def _with_bias(weight: Tensor, bias: Tensor | None, wanted: bool) -> Tensor:
    if not wanted:
        return weight.float()
    column = torch.zeros_like(weight[:, :1]) if bias is None else bias[:, None]
    return torch.cat([weight, column], 1).float()
