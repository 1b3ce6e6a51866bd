"""How the processes of a training share it, and what of a training is refused before it starts.

    ddp        every process holds the whole student and a part of each batch; gradients are averaged (Li et al.,
               arXiv 2006.15704)
    fsdp       weights, gradients and optimizer state are divided too and gathered layer by layer: Lightning's
               ModelParallelStrategy over torch's fully_shard, FSDP2 (Zhao et al., arXiv 2304.11277)
    deepspeed  ZeRO stage 2 (Rajbhandari et al., arXiv 1910.02054): gradients and optimizer state are divided. Needs
               CUDA and the library: its settings are checked, and it is UNTESTED, for want of a GPU

On a CPU they talk through gloo, on CUDA through NCCL. All processes are of one machine, and ours: a training starts
them (`processes`), never Lightning, which would start the whole command once more.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from compress.errors import UserError
from compress.preparation import trainings
from compress.train.optimizer import check_optimizer
from compress.train.settings import Logger, Strategy, Training

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compress.stage import Stage


def check_trainings(stages: Mapping[str, Stage], device: str) -> None:
    """Refuse what cannot train this way on `device` (cpu or cuda), before anything is computed.

    Raises:
        UserError: DeepSpeed without CUDA or without its library, more processes than GPUs, FSDP on a 4-bit base or with
            an optimizer of bitsandbytes, a logger whose library is missing, an optimizer that does not work.
    """
    for name, part in trainings(stages):
        _check(name, part.kind, part.train, device)
        check_optimizer(part.train.optimizer)


def _check(name: str, kind: str, settings: Training, device: str) -> None:
    import torch

    if settings.strategy is Strategy.deepspeed:
        if device != "cuda":
            raise UserError(
                f"stage {name!r}: train.strategy=deepspeed needs CUDA, and this run is on the {device}.",
                "Give train.strategy=ddp or train.strategy=fsdp, which train on CPUs too.",
            )
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                f"stage {name!r}: train.strategy=deepspeed needs the library deepspeed, which is not installed.",
                "pip install deepspeed, or give train.strategy=fsdp.",
            )
    if device == "cuda" and settings.devices > torch.cuda.device_count():
        raise UserError(
            f"stage {name!r}: train.devices={settings.devices}, and there are {torch.cuda.device_count()} GPUs.",
            f"Give train.devices={torch.cuda.device_count()} or fewer.",
        )
    if Logger.tensorboard in settings.loggers and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            f"stage {name!r}: train.loggers names tensorboard, which is not installed.",
            "pip install -e '.[tensorboard]', or give train.loggers=[csv].",
        )
    if settings.strategy is Strategy.fsdp and str(settings.optimizer.get("_target_")).startswith("bitsandbytes."):
        raise UserError(
            f"stage {name!r}: bitsandbytes has no optimizer for the divided weights of train.strategy=fsdp.",
            "Give train.strategy=ddp, or leave the optimizer out.",
        )
    if settings.strategy is Strategy.fsdp and settings.optimizer_name == "Muon":
        raise UserError(
            f"stage {name!r}: Muon makes whole matrices orthogonal, and train.strategy=fsdp divides them.",
            "Give train.strategy=ddp, or train=default, which is AdamW.",
        )
    if kind == "qlora" and settings.strategy is Strategy.fsdp:
        raise UserError(
            f"stage {name!r}: train.strategy=fsdp divides weights, and those of a 4-bit base are codes.",
            f"Give stages.{name}.train.strategy=ddp: the base is small, and only adapters train.",
        )


def strategy_for(settings: Training) -> Any:
    """What Lightning's Trainer takes as its strategy."""
    if settings.devices == 1:
        return "auto"
    if settings.strategy is Strategy.fsdp:
        from lightning.pytorch.strategies import ModelParallelStrategy

        # one file for a checkpoint: resuming checks one hash
        return ModelParallelStrategy(
            data_parallel_size=settings.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if settings.strategy is Strategy.deepspeed:
        from lightning.pytorch.strategies import DeepSpeedStrategy

        return DeepSpeedStrategy(config=deepspeed_config(settings))
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy()


def deepspeed_config(settings: Training) -> dict[str, Any]:
    """DeepSpeed's own settings for ours; Lightning adds the accumulation.

    Whole fp32 weights stay on every GPU: rank 0 writes them as they are.
    """
    pieces = settings.accumulate * settings.devices
    return {
        "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
        "train_micro_batch_size_per_gpu": settings.batch // pieces,
        "gradient_clipping": settings.clip,
        "zero_allow_untested_optimizer": True,
    }


def plugins(settings: Training) -> list[Any]:
    """The processes are there already and are all: no cluster around us is any of this training's."""
    if settings.devices == 1:
        return []
    from lightning.pytorch.plugins.environments import LightningEnvironment

    return [LightningEnvironment()]
