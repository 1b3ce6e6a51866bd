"""A checkpoint: a Hugging Face folder, read lazily, with what is known about it.

On disk a checkpoint is always a folder that plain `transformers` can read: `config.json`, `model*.safetensors`,
tokenizer, and for an adapter `adapter_config.json` beside it. A quantized tensor lies there *encoded*, under the names
its runtime reads (bitsandbytes' names for NF4 and INT8), so that an export writes the codes that were measured and
never fits again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 4 << 30
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PLAN = "prune_plan.json"
"""Written by pruning: which groups of the original stayed. Not delivered."""
CARRIED = (".json", ".jinja", ".txt", ".model", ".tiktoken")
NOT_CARRIED = (".safetensors.index.json", "record.json", ADAPTER_CONFIG, "manifest.json")


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk. Cheap to make: nothing is read before it is asked for."""

    folder: Path
    traits: frozenset[str]
    name: str = "model"

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """`config.json` as it stands."""
        loaded: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return loaded

    @cached_property
    def config(self) -> Any:
        """The transformers config object."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder)

    @cached_property
    def shards(self) -> dict[str, Path]:
        """Tensor name -> the safetensors file that holds it (the adapter's are not among them)."""
        from safetensors import safe_open

        # transformers looks for the single file first
        file = self.folder / "model.safetensors"
        if file.is_file():
            with safe_open(file, "pt") as opened:
                return dict.fromkeys(sorted(opened.keys()), file)
        weight_map: dict[str, str] = json.loads((self.folder / INDEX).read_text())["weight_map"]
        return {name: self.folder / shard for name, shard in sorted(weight_map.items())}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor in name order, one in memory at a time (pages of the file are mapped, not read ahead)."""
        from safetensors import safe_open

        opened: dict[Path, Any] = {}
        for name, file in self.shards.items():
            if file not in opened:
                opened[file] = safe_open(file, "pt")
            yield name, opened[file].get_tensor(name)

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        from safetensors import safe_open

        with safe_open(self.shards[name], "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        return tensor

    def tokenizer(self) -> Any:
        """The tokenizer of the folder."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def weight_files(self) -> list[Path]:
        """All files that hold weights, the adapter's too; a stray file that no index names is none."""
        return weight_files(self.folder)

    def bytes(self) -> int:
        """Size of all weight files."""
        return sum(file.stat().st_size for file in self.weight_files())

    def copy_sidecars(self, folder: Path) -> None:
        """Copy config, tokenizer, chat template and licence."""
        for file in sidecars(self.folder):
            shutil.copyfile(file, folder / file.name)


def sidecars(folder: Path) -> list[Path]:
    """What goes with the weights wherever they go, sorted; other weights, cards and records in the folder do not."""

    def goes(name: str) -> bool:
        licence = name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        return licence or (name.endswith(CARRIED) and not name.endswith(NOT_CARRIED))

    return sorted(file for file in folder.iterdir() if file.is_file() and goes(file.name))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that a load reads, sorted."""
    single, adapter = folder / "model.safetensors", folder / ADAPTER_WEIGHTS
    if single.is_file():
        found = {single}
    elif (folder / INDEX).is_file():
        shards: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        found = {folder / shard for shard in shards.values()}
    else:
        found = set()
    return sorted(found | ({adapter} if adapter.is_file() else set()))


class TensorWriter:
    """Writes tensors one after the other into sharded safetensors files of a folder."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.pending: dict[str, torch.Tensor] = {}
        self.pending_bytes = 0
        self.written: list[tuple[Path, list[str]]] = []
        self.total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Queue one tensor; a full shard is written out at once."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > self.shard_bytes:
            self._flush()
        self.pending[name] = tensor.contiguous()
        self.pending_bytes += size
        self.total_bytes += size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        file = self.folder / f"model-{len(self.written) + 1:05d}.part"
        save_file(self.pending, file, metadata={"format": "pt"})
        self.written.append((file, list(self.pending)))
        self.pending, self.pending_bytes = {}, 0

    def close(self) -> None:
        """Write what is left and give the shards their names, with an index if there are several."""
        if self.pending:
            self._flush()
        count = len(self.written)
        if count == 1:
            self.written[0][0].rename(self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (file, names) in enumerate(self.written, start=1):
            final = file.with_name(f"model-{number:05d}-of-{count:05d}.safetensors")
            file.rename(final)
            weight_map |= dict.fromkeys(names, final.name)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_config(folder: Path, config: Any, changes: Mapping[str, Any] | None = None) -> None:
    """Write `config.json` so that the same config gives the same bytes on every machine.

    Args:
        folder: where to.
        config: a transformers config.
        changes: top-level keys to set, or with the value None to leave out.
    """
    values = json.loads(config.to_json_string(use_diff=True))
    for key, value in {"_name_or_path": None, "_model_name_or_path": None, **(changes or {})}.items():
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def tensor_digests(folder: Path) -> dict[str, str]:
    """Sha256 of every tensor's dtype, shape and bytes, by `file:tensor`: names the tensor in which a bit flipped."""
    digests: dict[str, str] = {}
    for file in weight_files(folder):
        adapter = "adapter:" if file.name == ADAPTER_WEIGHTS else ""
        with file.open("rb") as opened:
            header_bytes = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(header_bytes))
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
                begin, end = entry["data_offsets"]
                opened.seek(8 + header_bytes + begin)
                digest = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
                remaining = end - begin
                while remaining:
                    block = opened.read(min(remaining, 1 << 22))
                    if not block:
                        raise EOFError(f"{file} ends inside tensor {name}")
                    digest.update(block)
                    remaining -= len(block)
                digests[adapter + name] = digest.hexdigest()
    return dict(sorted(digests.items()))


def weights_key(digests: Mapping[str, str]) -> str:
    """One sha256 for all weights; equal exactly when names, types, shapes and bytes are."""
    return hashlib.sha256(json.dumps(dict(sorted(digests.items()))).encode()).hexdigest()
