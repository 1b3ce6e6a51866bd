"""The proof of an artifact: reloaded in a fresh process, it must say what the model in the pipeline said."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RELOAD = Path(__file__).with_name("reload.py")


@dataclass(frozen=True)
class RoundTrip:
    """What came out of the reload."""

    verified: bool
    mean_kl: float
    max_kl: float
    top1_agreement: float
    first_difference: int | None
    """First position at which the likeliest tokens differ."""
    load_seconds: float
    error: str = ""
    loaded: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


@torch.no_grad()
def verify(artifact: Path, model: Any, ids: Tensor, tolerance: float, threads: int) -> RoundTrip:
    """Reload `artifact` with plain transformers in a fresh process and compare.

    Args:
        artifact: Hugging Face folder.
        model: the model in the pipeline.
        ids: tokens [1, length] to compare on.
        tolerance: largest mean KL(pipeline || artifact), in nats.
        threads: CPU threads of the fresh process.
    """
    expected = model(ids.to(model.device)).logits[0].float().cpu()
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "ids.safetensors", Path(folder) / "logits.safetensors"
        from safetensors.torch import load_file, save_file

        save_file({"ids": ids}, given)
        child = subprocess.run(
            [sys.executable, "-I", str(RELOAD), str(artifact), str(given), str(answer)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            last = (child.stderr.strip().splitlines() or ["no message"])[-1]
            problem = f"plain transformers cannot run it: {last}"
            return RoundTrip(False, float("inf"), float("inf"), 0.0, 0, 0.0, problem, loaded=False)
        found = load_file(answer)
    return compare(expected, found["logits"][0], tolerance, float(found["load_seconds"]))


def compare(expected: Tensor, found: Tensor, tolerance: float, load_seconds: float = 0.0) -> RoundTrip:
    """Compare logits [positions, vocab] of pipeline and artifact."""
    if expected.shape != found.shape:
        shapes = f"logits of shape {list(found.shape)}, expected {list(expected.shape)}"
        return RoundTrip(False, float("inf"), float("inf"), 0.0, 0, load_seconds, shapes)
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    same = expected.argmax(-1) == found.argmax(-1)
    mean = float(kl.mean())
    # written so that NaN fails
    verified = bool(mean <= tolerance)
    return RoundTrip(
        verified,
        mean,
        float(kl.max()),
        float(same.float().mean()),
        None if bool(same.all()) else int((~same).nonzero()[0]),
        load_seconds,
        "" if verified else f"mean KL {mean:.2e} is above the tolerance {tolerance:.0e}",
    )
