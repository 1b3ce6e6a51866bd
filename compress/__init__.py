"""compress: a config goes in, a smaller language model comes out, with the proof of what it cost.

import compress
report = compress.run(["+pipeline=prune_distill", "budget=smoke"])
model = compress.load(report["artifacts"][0]["path"])
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

__all__ = ["load", "run"]

# transformers imports torchao where it is installed, which then names every kernel of its own that does not load, and
# torch names what torchao registers in an old way
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def run(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose a config from `overrides`, as typed on the command line, and run it.

    Args:
        overrides: such as ["+pipeline=prune_distill", "stages.prune.keep=0.8"].

    Returns:
        The report, as in report.json.

    Raises:
        UserError: a mistake in the config, the model or the text; the message says what to type instead.
    """
    from compress.command import run_overrides

    return run_overrides(list(overrides))


def load(artifact: str, device: str = "cpu") -> Any:
    """An artifact as a transformers model in evaluation mode, on our kernels where there are any.

    Args:
        artifact: folder of an artifact, or any Hugging Face model folder.
        device: where to.

    Raises:
        UserError: the folder is missing or is no model.
    """
    from pathlib import Path

    from compress.errors import UserError

    folder = Path(artifact)
    if not (folder / "config.json").is_file():
        raise UserError(f"{artifact} is not a model folder: it has no config.json.", "Give the path of an artifact.")
    from compress.runtime.loading import load_model

    return load_model(folder, device=device, as_codes=True)
