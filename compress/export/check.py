"""mode=verify: checks an artifact's bytes against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.errors import UserError


def check_artifact(artifact: str | None) -> dict[str, Any]:
    """Compare every file and tensor with the manifest.

    Raises:
        UserError: there is nothing to check, or something is not as it was written.
    """
    from compress.export.hf import MANIFEST, damaged

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
    return {"message": f"{artifact}: every file and tensor is as it was written", "status": 0}
