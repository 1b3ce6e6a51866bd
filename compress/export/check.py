"""mode=verify: checks an artifact's bytes against its manifest, and asks its runtime again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UserError

if TYPE_CHECKING:
    from compress.export.probe import Probe

INSTALL = {
    "transformers": "pip install transformers",
    "compress": "pip install -e . in the folder of compress",
    "llama_cpp": "pip install llama-cpp-python",
    "onnxruntime": "pip install onnxruntime",
    "executorch": "pip install executorch",
}
"""Runtime (its module) -> what to type when it is missing."""


def check_artifact(artifact: str | None, threads: int | None = None) -> dict[str, Any]:
    """Compare every file and tensor with the manifest, then the runtime's answers with those kept in the artifact.

    Returns:
        `message` and exit `status`: 1 if the bytes are right but the runtime answers otherwise.

    Raises:
        UserError: there is nothing to check, something is not as it was written, or the runtime is not installed.
    """
    from compress.export.manifest import MANIFEST, damaged
    from compress.export.probe import kept

    if not artifact:
        raise UserError("mode=verify needs an artifact.", "Type mode=verify artifact=FOLDER.")
    folder = Path(artifact)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{artifact} has no {MANIFEST}.", "Give the folder of an artifact: outputs/.../artifacts/hf.")
    found = damaged(folder)
    if found:
        raise UserError(
            f"{artifact} is not as it was written: {', '.join(found[:5])}" + (" and more." if len(found) > 5 else "."),
            "Copy it again, or repeat the run: it takes its stages from the store.",
        )
    whole = f"{artifact}: every file and tensor is as it was written"
    probe = kept(folder)
    if probe is None:
        return {"message": f"{whole}; it holds no answers to compare with", "status": 0}
    return _ask_again(folder, probe, whole, threads)


def _ask_again(folder: Path, probe: Probe, whole: str, threads: int | None) -> dict[str, Any]:
    import importlib.util

    from compress.export.fresh import FreshProcess, ReloadError
    from compress.preparation import available_threads

    runtime = probe.facts["runtime"]
    if importlib.util.find_spec(runtime) is None:
        raise UserError(
            f"{whole}, but {runtime} is not installed: its answers cannot be compared.", f"Type: {INSTALL[runtime]}."
        )
    try:
        with FreshProcess(runtime, folder, threads or available_threads(), len(probe.ids)) as process:
            told = probe.compare(process.logits(probe.ids))
    except ReloadError as error:
        return {"message": f"{whole}, but FAILED: {runtime} cannot run it: {error}", "status": 1}
    if not told.verified:
        return {"message": f"{whole}, but FAILED: {told.error}", "status": 1}
    beside = f" ({probe.facts['scheme']})" if probe.facts["scheme"] else ""
    return {
        "message": f"{whole}, and {runtime} answers as it did: mean KL {told.mean_kl:.1e} over {len(probe.ids)} tokens"
        f"{beside}, tolerance {probe.facts['tolerance']:.0e}",
        "status": 0,
    }
