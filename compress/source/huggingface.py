"""Any Hugging Face model: a local folder or a hub id. Only data is fetched: no pickles, no code."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from compress.errors import UserError
from compress.source.check import check_complete, check_finite, check_folder, check_is_folder, weight_files
from compress.source.resolved import ResolvedModel

logger = logging.getLogger("compress")

WANTED = [
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md",
]  # fmt: skip
"""Names, not kinds of files: copies of the weights for other programs often lie beside them and below."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass
class HuggingFaceModel:
    """A causal language model with safetensors weights."""

    path: str = ""  # local folder or hub id
    revision: str | None = None  # branch, tag or commit on the hub; the main branch if not given

    def resolve(self) -> ResolvedModel:
        """The checked folder, downloaded if it is not there.

        Raises:
            UserError: no path, neither a folder nor a reachable hub id, or not a model to start from (see
                `compress.source.check`).
        """
        if not self.path:
            raise UserError("model=hf needs a model.", "Add model.path=DIR_OR_ID.")
        local = Path(self.path).expanduser()
        if local.exists():
            if self.revision is not None:
                raise UserError(
                    f"{local} is on this machine and has no revisions; model.revision={self.revision} was given.",
                    "Leave model.revision out.",
                )
            folder, name = local.resolve(), local.resolve().name
        else:
            folder, name = self._download(), self.path
        check_folder(folder)
        check_complete(folder)
        check_finite(folder)
        source_bytes = sum(file.stat().st_size for file in weight_files(folder))
        # the hub's cache names a snapshot's folder by its commit
        hub = ("", "") if local.exists() else (self.path, folder.name)
        return ResolvedModel(folder, name, source_bytes, "", _licence(folder), *hub)

    def fetch_small(self) -> Path:
        """A folder with everything but weights: the local one, or what a hub id has.

        Raises:
            UserError: no path, or neither a folder nor a reachable hub id.
        """
        if not self.path:
            raise UserError("model=hf needs a model.", "Add model.path=DIR_OR_ID.")
        local = Path(self.path).expanduser()
        if local.exists():
            check_is_folder(local)
            return local.resolve()
        return self._download([name for name in WANTED if ".safetensors" not in name])

    def _download(self, wanted: list[str] = WANTED) -> Path:
        if not HUB_ID.fullmatch(self.path):
            raise UserError(
                f"The model folder {self.path} does not exist.", "Give one that does: model.path=DIR_OR_ID."
            )
        from huggingface_hub import snapshot_download

        logger.info("Downloading %s from the Hugging Face hub", self.path)
        try:
            found = snapshot_download(self.path, revision=self.revision, allow_patterns=wanted)
        except (OSError, ValueError) as error:
            # the hub's own errors are all of these kinds: no such id or revision, no access, no network, offline mode
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            revision = f" (revision {self.revision})" if self.revision else ""
            raise UserError(
                f"{self.path}{revision} is neither a folder here nor a model that could be fetched from the Hugging "
                f"Face hub: {reason}",
                f"If you meant a folder, check the path (looked for {Path(self.path).absolute()}). If you meant a hub "
                "id, check its spelling and the network; private and gated models need 'hf auth login'.",
            ) from error
        return Path(found)


def _licence(folder: Path) -> str:
    """What the model card's header says."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    named = re.search(r"^license:[ \t]*(\S.*?)\s*$", header[1], re.MULTILINE) if header else None
    return named[1].strip("'\"") if named else ""
