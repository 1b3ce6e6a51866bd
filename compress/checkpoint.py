"""A checkpoint: a Hugging Face folder, read lazily, with what is known about it.

On disk a checkpoint is always a folder that plain `transformers` can read: `config.json`, `model*.safetensors`,
tokenizer, and for an adapter `adapter_config.json` beside it. A quantized tensor lies there *encoded*, under the names
its runtime reads (bitsandbytes' names for NF4 and INT8), so that an export writes the codes that were measured and
never fits again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.shard import BLOCK, DTYPES
from compress.writer import INDEX, SINGLE

if TYPE_CHECKING:
    import torch

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
    rows: int | None = None
    """Of embedding and head, those that count; what a larger model of the same tokenizer has more is padding."""

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """`config.json` as it stands."""
        loaded: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return loaded

    @property
    def dtype_name(self) -> str:
        """Type of the weights as config.json states it, under its new name or its old one; else as they are stored."""
        stated = self.raw_config.get("dtype") or self.raw_config.get("torch_dtype")
        return str(stated or stored_dtype(self.folder) or "float32").removeprefix("torch.")

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
        file = self.folder / SINGLE
        if file.is_file():
            with safe_open(file, "pt") as opened:
                return dict.fromkeys(sorted(opened.keys()), file)
        weight_map: dict[str, str] = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: self.folder / shard for name, shard in sorted(weight_map.items())}

    def tensors(self, without: Container[str] = ()) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor in name order, but for those in `without`; while one is worked on the disk reads the next.

        Pages of the files are mapped: they are no memory of the process' own.
        """
        from safetensors import safe_open

        opened: dict[Path, Any] = {}
        wanted = [(name, file) for name, file in self.shards.items() if name not in without]
        for (name, file), following in zip_longest(wanted, wanted[1:]):
            if file not in opened:
                opened[file] = safe_open(file, "pt")
            if following is not None:
                read_ahead(*following)
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

    def copy_weights(self, folder: Path) -> None:
        """Copy all files that hold weights, and the index that names them if there are several."""
        single, index = self.folder / SINGLE, self.folder / INDEX
        for file in (*self.weight_files(), *([index] if index.is_file() and not single.is_file() else [])):
            shutil.copyfile(file, folder / file.name)

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
    single, adapter = folder / SINGLE, folder / ADAPTER_WEIGHTS
    if single.is_file():
        found = {single}
    elif (folder / INDEX).is_file():
        shards: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        found = {folder / shard for shard in shards.values()}
    else:
        found = set()
    return sorted(found | ({adapter} if adapter.is_file() else set()))


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
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begins, and name -> `dtype`, `shape`, `data_offsets` in it."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return 8 + size, header


def stored_dtype(folder: Path) -> str | None:
    """The type of the largest tensor in the first weight file, "bfloat16"; None where it is no floating-point one."""
    try:
        _, header = read_header(sorted(folder.glob("model*.safetensors"))[0])
        largest = max(header.values(), key=lambda entry: entry["data_offsets"][1] - entry["data_offsets"][0])
        name = {stored: name for name, stored in DTYPES.items()}.get(largest["dtype"], "")
    except (OSError, ValueError, KeyError, IndexError, MemoryError):
        return None
    return name if "float" in name else None


def read_ahead(name: str, file: Path) -> None:
    """Let the system read a tensor into its cache, without waiting for it."""
    if not hasattr(os, "posix_fadvise"):
        return
    start, header = read_header(file)
    begin, end = header[name]["data_offsets"]
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), start + begin, end - begin, os.POSIX_FADV_WILLNEED)


def tensor_digests(folder: Path) -> dict[str, str]:
    """Sha256 of every tensor's dtype, shape and bytes, by `file:tensor`: names the tensor in which a bit flipped."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = {name: digest for part in pool.map(_file_digests, weight_files(folder)) for name, digest in part}
    return dict(sorted(digests.items()))


def _file_digests(file: Path) -> list[tuple[str, str]]:
    adapter = "adapter:" if file.name == ADAPTER_WEIGHTS else ""
    digests = []
    start, header = read_header(file)
    with file.open("rb") as opened:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            opened.seek(start + begin)
            digest = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
            remaining = end - begin
            while remaining:
                block = opened.read(min(remaining, BLOCK))
                if not block:
                    raise EOFError(f"{file} ends inside tensor {name}")
                digest.update(block)
                remaining -= len(block)
            digests.append((adapter + name, digest.hexdigest()))
    return digests


def weights_key(digests: Mapping[str, str]) -> str:
    """One sha256 for all weights; equal exactly when names, types, shapes and bytes are."""
    return hashlib.sha256(json.dumps(dict(sorted(digests.items()))).encode()).hexdigest()
