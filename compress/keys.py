"""What a stage's result depends on, and nothing else: the parts of its content key."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from compress.checkpoint import Checkpoint, sidecars, tensor_digests, weight_files, weights_key
from compress.hardware import HALF, gpu_has_bf16, name_of, native
from compress.stage import DENSE, DENSE_PARENT, TEACHER, TEXT, Stage
from compress.store import Store, content_key, file_digest

LIBRARIES = ("torch", "transformers", "bitsandbytes", "peft", "lightning", "safetensors", "scipy")
WITHOUT_EFFECT = frozenset({"checkpoint_seconds", "loggers"})
"""Fields that change how a result is made, but not the result."""


@dataclass(frozen=True)
class Known:
    """A checkpoint with what identifies it."""

    checkpoint: Checkpoint
    weights: str
    sidecars: str

    @property
    def key(self) -> dict[str, str]:
        """For the key of the next stage."""
        cut = {} if self.checkpoint.rows is None else {"rows": str(self.checkpoint.rows)}
        return {"weights": self.weights, "sidecars": self.sidecars, **cut}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a bit of a result."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


@cache
def module_version(name: str) -> str:
    """Version of an installed package by its module's name."""
    with suppress(PackageNotFoundError):
        return version(name)  # most are called as their module is: the way below reads the lists of all files there are
    for package in packages_distributions().get(name, ()):
        with suppress(PackageNotFoundError):
            return version(package)
    return "missing"


def stage_fields(stage: Any) -> Any:
    """The resolved fields of a stage, nested settings included, as JSON; of a stage inside it kind and version too."""
    return {field.name: _plain(getattr(stage, field.name)) for field in fields(stage)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        stage: Any = value
        inner = {"kind": stage.kind, "version": stage.version} if hasattr(stage, "version") else {}
        return inner | _plain({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key not in WITHOUT_EFFECT}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def sidecars_key(folder: Path) -> str:
    """Sha256 over what lies beside the weights and counts: config, tokenizer, chat template."""
    return content_key({file.name: file_digest(file) for file in sidecars(folder)})


def source_key(folder: Path, store: Store) -> str:
    """Key of the weights of a folder that is not in the store; remembered by path, size and time of its files."""
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in weight_files(folder)]
    asked = content_key({"folder": str(folder.resolve()), "files": stamps})
    found = store.recall("fingerprints", asked)
    if found is None:
        found = {"weights": weights_key(tensor_digests(folder))}
        store.remember("fingerprints", asked, found)
    return str(found["weights"])


def known_source(folder: Path, name: str, store: Store) -> Known:
    """A dense model from outside the store."""
    return Known(Checkpoint(folder, frozenset({DENSE}), name), source_key(folder, store), sidecars_key(folder))


def machine_inputs(device: str, threads: int) -> dict[str, Any]:
    """What every result depends on besides its own inputs: libraries, kernels, and the arithmetic of this machine."""
    from compress_kernels import backend_name

    # decides what models compute in
    own: dict[str, Any] = {}
    if device == "cpu":
        own = {"half": sorted(dtype for dtype in HALF if native(dtype))}
    elif device == "cuda" and not gpu_has_bf16():
        own = {"half": ["float16"]}
    return {"versions": library_versions(), "device": device, "threads": threads, "kernels": backend_name(device)} | own


def stage_inputs(
    stage: Stage, parent: Mapping[str, str], inputs: Mapping[str, Any], run: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything a stage's result depends on: `content_key` of it is the key of the result.

    Args:
        stage: with its resolved fields.
        parent: `weights` and `sidecars` of the checkpoint it works on.
        inputs: by the names of `Stage.reads`; only those it reads count.
        run: seed, versions, device, threads, kernel backend.
    """
    read = {name: inputs[name] for name in sorted(stage.reads & {TEXT, TEACHER, DENSE_PARENT})}
    fields = stage_fields(stage)
    # a stage that prunes inside it has the fields of that in its own
    if any(part.get("latency") is not None for part in (fields, fields.get("prune") or {})):
        run = {**run, "processor": name_of(run.get("device"))}  # what was timed here is not so elsewhere
    return {"kind": stage.kind, "version": stage.version, "fields": fields, "parent": parent, "reads": read, **run}
