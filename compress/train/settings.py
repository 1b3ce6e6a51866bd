"""The settings of one training stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from compress.errors import UserError


class Precision(str, Enum):
    """Arithmetic of the forward and backward pass; weights and optimizer state stay fp32."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class Schedule(str, Enum):
    """How the rate falls after warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Strategy(str, Enum):
    """How several processes share a training; see `compress.train.strategy`."""

    auto = "auto"
    """ddp, if there are several."""
    ddp = "ddp"
    fsdp = "fsdp"
    deepspeed = "deepspeed"


class Keep(str, Enum):
    """Which weights a training ends with."""

    last = "last"
    best = "best"
    """Those of the validation with the lowest loss."""


class Logger(str, Enum):
    """Where the curve is written while it grows, besides the report."""

    csv = "csv"
    tensorboard = "tensorboard"
    """Needs `pip install tensorboard`."""


@dataclass
class Training:
    """One training run. Budgets are in tokens, so that they mean the same for every batch and length."""

    tokens: int = 16_000
    """Training tokens in all."""
    length: int = 256
    """Tokens per window."""
    batch: int = 2
    """Windows per optimizer step."""
    accumulate: int = 1
    """Micro-batches a step is computed in; must divide `batch`. More of them need less memory."""
    strategy: Strategy = Strategy.auto
    """How several processes share the work: ddp (auto), fsdp (weights and optimizer state divided too), deepspeed."""
    devices: int = 1
    """Processes of this machine, one on each GPU, or sharing the CPU's threads; must divide `batch`."""
    own_share: float = 0.25
    """Fraction of the windows that are text the original has written itself, each at most three times."""
    rate: float = 3e-4
    """Peak learning rate."""
    warmup: float = 0.1
    """Fraction of the steps in which the rate rises from zero."""
    final_rate: float = 0.0
    """Rate at the end, as a fraction of the peak."""
    schedule: Schedule = Schedule.cosine
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    precision: Precision = Precision.auto
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "torch.optim.AdamW", "betas": [0.9, 0.95], "weight_decay": 0.0}
    )
    """Any optimizer of torch.optim or bitsandbytes.optim by its full name, with its arguments."""
    activation_checkpointing: bool = False
    """Keep of every layer its input only, and compute the rest again backward: a third slower, far less memory."""
    validate_every: int = 0
    """Training tokens between two measurements on held-out text; 0 for none."""
    validate_tokens: int = 4096
    """Held-out tokens of a measurement, from the end of the held-out text: results are measured on its beginning."""
    keep: Keep = Keep.last
    """Weights to end with: last, or best, those of the validation with the lowest loss."""
    patience: int = 0
    """Stop after so many validations in a row without a lower loss; 0 for never."""
    loggers: list[Logger] = field(default_factory=list)
    """csv, tensorboard: written to logs/<stage> beside the report."""
    checkpoint_seconds: float = 30.0
    """Progress is saved this often (less often if saving would cost over a tenth of the time); 0 for never."""

    def __post_init__(self) -> None:
        for name in ("tokens", "length", "batch", "accumulate", "devices"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 1.")
        if self.batch % self.accumulate:
            raise UserError(
                f"train.accumulate={self.accumulate} does not divide train.batch={self.batch}.",
                f"Give train.batch={self.accumulate * -(-self.batch // self.accumulate)}, or another train.accumulate.",
            )
        if self.length < 8:
            raise UserError(f"train.length={self.length} is too short to learn from.", "Give at least 8 tokens.")
        if not self.clip > 0:
            raise UserError(f"train.clip={self.clip} must be above zero.")
        if not 0 <= self.own_share <= 1:
            raise UserError(f"train.own_share={self.own_share} is a fraction: from 0 to 1.")
        if self.checkpoint_seconds < 0:
            raise UserError(f"train.checkpoint_seconds={self.checkpoint_seconds} must not be negative.")
        self._check_rate()
        self._check_processes()
        self._check_validation()

    @property
    def optimizer_name(self) -> str:
        """The class that `optimizer` names, without its package."""
        return str(self.optimizer.get("_target_", "")).rpartition(".")[2]

    def _check_rate(self) -> None:
        if not 0 < self.rate < math.inf:
            raise UserError(f"train.rate={self.rate} must be above zero, and a number.")
        if not 0 <= self.warmup < 1:
            raise UserError(f"train.warmup={self.warmup} is the fraction of steps spent warming up: from 0 to below 1.")
        if not 0 <= self.final_rate <= 1:
            raise UserError(f"train.final_rate={self.final_rate} is a fraction of the peak rate: from 0 to 1.")

    def _check_processes(self) -> None:
        if self.batch % (self.accumulate * self.devices):
            raise UserError(
                f"train.devices={self.devices} times train.accumulate={self.accumulate} does not divide "
                f"train.batch={self.batch}.",
                f"Give every process a whole number of windows: train.batch={self.accumulate * self.devices}.",
            )
        if self.devices == 1 and self.strategy is not Strategy.auto:
            raise UserError(
                f"train.strategy={self.strategy.value} is about several processes, and train.devices=1.",
                "Give train.devices=2 or more, or leave the strategy out.",
            )

    def _check_validation(self) -> None:
        for name in ("validate_every", "patience"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name}={getattr(self, name)} must not be negative; 0 is for never.")
        if self.validate_tokens < 1:
            raise UserError(f"train.validate_tokens={self.validate_tokens} must be at least 1.")
        if not self.validate_every and (self.keep is Keep.best or self.patience):
            asked = "train.keep=best" if self.keep is Keep.best else f"train.patience={self.patience}"
            raise UserError(
                f"{asked} goes by validations, and train.validate_every=0 makes none.",
                f"Give the tokens between two: train.validate_every={max(1, self.tokens // 10)}.",
            )


def rate_at(step: int, steps: int, settings: Training) -> float:
    """Factor on the peak rate for optimizer step `step` (from 0) of `steps`."""
    import math

    rising = round(settings.warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, steps - rising)
    fall = {
        Schedule.cosine: 0.5 * (1 + math.cos(math.pi * done)),
        Schedule.linear: 1 - done,
        Schedule.constant: 1.0,
    }[settings.schedule]
    return settings.final_rate + (1 - settings.final_rate) * fall
