"""The sha256 of every file and of every tensor of an artifact, so that a flipped bit is found and named.

Where a tensor lies in its file is written down with its digest: finding the damaged one needs no reader of the format,
which a damaged file would confuse.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.store import file_digest

MANIFEST = "manifest.json"
CARELESS = (".md", "LICENSE", "LICENSE.txt", ".gitattributes", ".DS_Store", "desktop.ini", "Thumbs.db")
"""Ends of the names of files that change nothing that is loaded, and what Finder and Explorer leave in folders they
show; any other file that is new is told."""
OF_FINDER = "._"
"""How the names begin of what it leaves beside files on disks of other systems."""

Range = tuple[int, int]
"""Of bytes in a file."""


def write_manifest(folder: Path) -> dict[str, Any]:
    """Write the manifest of everything that lies in `folder`."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != MANIFEST]
    manifest: dict[str, Any] = {
        "files": {f.relative_to(folder).as_posix(): file_digest(f) for f in files},
        "tensors": {f.relative_to(folder).as_posix(): digests for f in files if (digests := _digests(f))},
    }
    manifest["sha256"] = _digest_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """Of the manifest itself, so that what it no longer names is missed."""
    body = {name: manifest[name] for name in ("files", "tensors")}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifests(folders: Iterable[Path]) -> None:
    """Of everything that ships; an artifact that could not be written has no folder."""
    for folder in folders:
        if folder.is_dir():
            write_manifest(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact, `files` and `tensors` of the right form.

    Raises:
        UserError: it is damaged, or names no files.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, tensors = manifest["files"], manifest["tensors"]
        sound = manifest["sha256"] == _digest_of(manifest) and bool(files)
        sound = sound and all(isinstance(digest, str) for digest in files.values())
        for places in tensors.values():
            sound = sound and all(isinstance(begin + end, int) and digest for begin, end, digest in places.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f"{folder / MANIFEST} is damaged: it does not say what the artifact was.",
            "Copy the artifact again, or repeat the run: it takes its stages from the store.",
        )
    return {"files": files, "tensors": tensors}


def damaged(folder: Path) -> list[str]:
    """What in `folder` is not as its manifest says: tensors by name, other files by path."""
    manifest = read_manifest(folder)
    found: list[str] = []
    for name, digest in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            found.append(name)
        elif file_digest(file) != digest:
            found += _changed(file, name, manifest["tensors"].get(name, {}))
    known = set(manifest["files"]) | {MANIFEST}
    files = [f for f in folder.rglob("*") if f.is_file() and ".cache" not in f.relative_to(folder).parts]
    counting = [f for f in files if not (f.name.endswith(CARELESS) or f.name.startswith(OF_FINDER))]
    there = {f.relative_to(folder).as_posix() for f in counting}
    return found + [f"{name} (was not there)" for name in sorted(there - known)]


def _changed(file: Path, name: str, tensors: dict[str, tuple[int, int, str]]) -> list[str]:
    """The tensors that changed; the file itself if it is too short or what changed is none of them."""
    if not tensors or file.stat().st_size < max(end for _, end, _ in tensors.values()):
        return [name]
    changed = [
        f"tensor {tensor} of {name}"
        for tensor, (begin, end, digest) in tensors.items()
        if _range_digest(file, (begin, end)) != digest
    ]
    return changed or [name]


def _digests(file: Path) -> dict[str, tuple[int, int, str]]:
    """Tensor -> where it lies and its sha256; nothing for a format without names."""
    places = {".safetensors": _safetensors, ".gguf": _gguf, ".data": _onnx}.get(file.suffix)
    if places is None:
        return {}
    return {name: (*place, _range_digest(file, place)) for name, place in sorted(places(file).items())}


def _safetensors(file: Path) -> dict[str, Range]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {name: (start + at["data_offsets"][0], start + at["data_offsets"][1]) for name, at in header.items()}


def _gguf(file: Path) -> dict[str, Range]:
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    return {t.name: (int(t.data_offset), int(t.data_offset) + int(t.n_bytes)) for t in tensors}


def _onnx(file: Path) -> dict[str, Range]:
    """The weights beside a graph: `model.onnx` says where in `model.onnx.data` they lie."""
    import onnx

    found: dict[str, Range] = {}
    for tensor in onnx.load(file.with_suffix(""), load_external_data=False).graph.initializer:
        at = {entry.key: entry.value for entry in tensor.external_data}
        if at.get("location") == file.name:
            begin = int(at["offset"])
            found[tensor.name] = (begin, begin + int(at["length"]))
    return found


def _range_digest(file: Path, place: Range) -> str:
    begin, end = place
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        opened.seek(begin)
        while begin < end and (block := opened.read(min(end - begin, 1 << 22))):
            digest.update(block)
            begin += len(block)
    return digest.hexdigest()
