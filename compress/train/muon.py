"""Muon for the matrices of a model, AdamW for the rest, as one optimizer.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon; scaled to AdamW's size of a step, Liu et al., arXiv
2502.16982, section 2.2) takes the nearest orthogonal matrix to the momentum for its step. torch.optim.Muon takes
matrices only; embeddings, norms and biases are AdamW's, as both papers have it. torch.optim.Muon finds that matrix in
bf16, whatever the processor: where products in bf16 are emulated a step takes minutes, so that there `WideMuon` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.hardware import native_bf16


class WideMuon(torch.optim.Muon):
    """torch.optim.Muon, its iteration in fp32. As a part of `MuonAndAdamW` it is given no closure."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return None

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        toward = gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean
        toward = orthogonal(toward, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameter.shape
        as_adamw = group["adjust_lr_fn"] == "match_rms_adamw"
        longer = (0.04 * max(rows, columns) if as_adamw else max(1.0, rows / columns)) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(toward, alpha=-group["lr"] * longer)


def orthogonal(matrix: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """About the nearest matrix [m, n] with singular values of 1, in fp32: X <- a X + (b A + c A A) X, A = X X^T.

    Newton-Schulz iterations of fifth order, from the matrix by its Frobenius norm. With five of them and Muon's
    coefficients, singular values from half a hundredth of that norm on end between 0.68 and 1.2.
    """
    a, b, c = coefficients
    turned = matrix.shape[0] > matrix.shape[1]
    x = (matrix.t() if turned else matrix).float()
    x = x / x.norm().clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if turned else x


class MuonAndAdamW(torch.optim.Optimizer):
    """Both, stepping together; `param_groups` are those of both, so that schedules and clipping see all.

    Args:
        groups: parameters with their rates.
        lr: AdamW's peak rate.
        factor: Muon's, as a multiple of that. An orthogonal step of the same size does less harm, so it can be longer.
        betas: AdamW's.
        weight_decay: of both.
        muon: further arguments of torch.optim.Muon.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        factor: float = 2.0,
        betas: Sequence[float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        **muon: Any,
    ) -> None:
        matrices, rest = [], []
        for group in groups:
            own = [p for p in group["params"] if is_matrix(p)]
            others = [p for p in group["params"] if not is_matrix(p)]
            matrices += [{**group, "params": own, "lr": factor * group["lr"]}] if own else []
            rest += [{**group, "params": others}] if others else []
        adamw: dict[str, Any] = {"betas": tuple(betas), "weight_decay": weight_decay, "fused": True}
        muon = {"weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw", **muon}
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            emulated = matrices[0]["params"][0].device.type == "cpu" and not native_bf16()
            self.parts.append((WideMuon if emulated else torch.optim.Muon)(matrices, lr=factor * lr, **muon))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=lr, **adamw))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._join()

    def _join(self) -> None:
        """The groups and the state are the parts' own."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()


def mark_tables(model: Any) -> None:
    """Say of embeddings and the head, which is one transposed, that they are no matrices in Muon's sense."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.table = True  # type: ignore[attr-defined]
    model.get_output_embeddings().weight.table = True


def is_matrix(parameter: Tensor) -> bool:
    """What Muon takes."""
    return parameter.ndim == 2 and not getattr(parameter, "table", False)
