"""One artifact from checkpoint to proof: written, reloaded in a fresh process, measured as delivered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint import ADAPTER_CONFIG, Checkpoint, tensor_digests, weights_key
from compress.export.settings import HFExport
from compress.store import content_key, file_digest

if TYPE_CHECKING:
    from compress.evaluate.evaluator import Evaluator

PART = ".unfinished"


def deliver(
    name: str, settings: HFExport, checkpoint: Checkpoint, folder: Path, evaluator: Evaluator, threads: int
) -> dict[str, Any]:
    """Write the artifact into `folder`, prove it and measure it.

    Returns:
        Its entry in the report.
    """
    from compress.export.hf import write_artifact

    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    write_artifact(checkpoint, settings, part)
    part.rename(folder)
    digests = tensor_digests(folder)
    weights = weights_key(digests) + file_digest(folder / "config.json")
    proof = _proof(settings, checkpoint, folder, evaluator, weights, threads)
    artifact = Checkpoint(folder, checkpoint.traits, checkpoint.name)
    metrics = evaluator.quality(artifact, weights, plain=True) if proof["loaded"] else {}
    return {
        "name": name,
        "format": "hf",
        "path": str(folder),
        "bytes": artifact.bytes(),
        "sha256": weights_key(digests),
        "merged": settings.merge.value,
        "adapter": (folder / ADAPTER_CONFIG).is_file(),
        **proof,
        "metrics": metrics,
    }


def _proof(
    settings: HFExport, checkpoint: Checkpoint, folder: Path, evaluator: Evaluator, weights: str, threads: int
) -> dict[str, Any]:
    """The round trip, or the remembered one of the same bytes under the same versions."""
    asked = {"weights": weights, "probe": settings.probe_tokens, "kl": settings.max_kl}
    key = content_key({"kind": "proof", "asked": asked, "inputs": evaluator.inputs})
    found = evaluator.store.recall("proofs", key)
    if found is None:
        from compress.export.verify import verify

        with evaluator.progress.bar("reloading in a fresh process", 1) as advance:
            ids = evaluator.windows[""][:1, : settings.probe_tokens]
            found = verify(folder, evaluator.load(checkpoint), ids, settings.max_kl, threads).as_dict()
            advance(1)
        if found["verified"]:
            evaluator.store.remember("proofs", key, found)
    return found
