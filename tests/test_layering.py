"""The rules that hold the house together, checked on the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "compress"

# imports go down this list only; names on one line may not import each other
LAYERS = [
    {"__main__"},
    {"multirun"},
    {"command"},
    {"mistakes"},
    {"preflight"},
    {"pipeline"},
    {"config"},
    {"sweep"},
    {"estimate"},
    {"prune", "distill", "quant", "recover", "evaluate", "export", "report"},
    {"folds"},
    {"calibrate", "layerwise", "moments", "own_text"},
    {"train"},
    {"losses"},
    {"runtime"},
    {"grids"},
    {"keys", "preparation", "progress", "memory"},
    {"source", "words"},
    {"data"},
    {"store", "arch"},
    {"checkpoint", "stage"},
    {"writer"},
    {"shard", "grid_names", "unknown"},
    {"paths", "errors", "quiet", "hardware", "durable"},
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
MAY_KNOW_FRAMEWORKS = {"__main__", "multirun", "command", "mistakes", "config", "pipeline", "train", "unknown"}
FRAMEWORKS = {"hydra", "omegaconf", "lightning"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(file: Path) -> str:
    relative = file.relative_to(PACKAGE).with_suffix("")
    return relative.parts[0]


def imported(file: Path) -> set[str]:
    """Absolute module names imported anywhere in a file, type-checking imports left out."""
    tree = ast.parse(file.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    here = part(file)
    if here == "__init__":
        return
    for name in imported(file):
        pieces = name.split(".")
        if pieces[0] != "compress" or len(pieces) < 2 or pieces[1] not in DEPTH:
            continue
        there = pieces[1]
        assert there == here or DEPTH[there] > DEPTH[here], f"{file.name}: {here} imports {there}"


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_some_know_the_frameworks(file: Path) -> None:
    if part(file) in MAY_KNOW_FRAMEWORKS:
        return
    known = {name.split(".")[0] for name in imported(file)}
    assert not known & FRAMEWORKS, f"{file.name} knows {known & FRAMEWORKS}"


def test_every_module_has_its_layer() -> None:
    parts = {part(file) for file in modules()} - {"__init__"}
    assert parts == set(DEPTH)


@pytest.mark.parametrize(
    "file",
    [file for folder in ("compress", "kernels", "experiments") for file in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 300


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_text_has_its_encoding_said(file: Path) -> None:
    """Else it is the locale's, which on Windows has no arrow."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
            assert "encoding" in {word.arg for word in node.keywords}, f"{file.name}:{node.lineno}"


def test_kernels_know_nothing_of_compress() -> None:
    for file in (ROOT / "kernels").rglob("*.py"):
        assert not any(name.split(".")[0] == "compress" for name in imported(file)), file


def test_kernels_folder_is_no_package() -> None:
    # a root package `kernels` would shadow Hugging Face's, which transformers imports
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_groups_mirror_the_package() -> None:
    families = {"prune", "distill", "quant", "recover", "evaluate", "export", "report", "sweep"}
    shared = {"model", "data", "train", "pipeline", "budget", "launch"}
    folders = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert folders == families | shared
    assert all((PACKAGE / family).is_dir() for family in families)


def test_heavy_imports_wait() -> None:
    """Everything the command line needs before it knows what to do must not import torch."""
    import subprocess
    import sys

    heavy = "{'torch', 'transformers', 'lightning', 'datasets', 'scipy', 'rich', 'numpy'}"
    code = f"import compress.__main__, sys; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
