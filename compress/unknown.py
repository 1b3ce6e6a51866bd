"""Settings that do not exist, and values out of range: refused by their place, with what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from compress.errors import UserError, speaking_of

STAGE_GROUPS = ("prune", "distill", "quant", "recover")
GROUPS = ("pipeline", "budget", "sweep", "launch", "model", "data", *STAGE_GROUPS, "export")
MEANT = {
    "EmbeddedModel": "A model of yours is model=hf model.path=DIR_OR_ID. ",
    "Sotu": "A text of yours is data=text data.path=FILE_OR_FOLDER. ",
    "PruneSearch": "What prunes is inside it: stages.prune.prune.keep=0.8. ",
    "PruneInSteps": "What prunes is inside it: stages.prune.prune.keep=0.8. ",
    "PythonDocs": "Another text of yours is data@second=text second.path=FILE_OR_FOLDER. ",
}
"""Of what is there by default -> what somebody who sets something else in it has probably forgotten."""


def no_such_setting(name: str, place: str, of: Any) -> tuple[str, str]:
    """Problem and hint.

    Args:
        name: of the setting.
        place: path of what it was set in; empty for the root.
        of: class of what it was set in.
    """
    if not place and (group := how_to_type(name)):
        return f"there is no {name!r} to change.", group
    there_are = [f.name for f in fields(of)] if is_dataclass(of) else []
    near = difflib.get_close_matches(name, there_are if place else [*there_are, *GROUPS], n=1)
    meant = MEANT.get(getattr(of, "__name__", ""), "")
    if near:
        meant = f"Did you mean {'+' * (near[0] in GROUPS and near[0] not in there_are)}{near[0]}? "
    return (
        f"there is no setting {name!r}{f' in {place}' if place else ''}.",
        f"{meant}The same command with --help shows all settings.",
    )


def how_to_type(group: str) -> str:
    """How an option of a group that has no place of its own is typed; empty for any other name."""
    if group in STAGE_GROUPS:
        return (
            f"To put another stage in the place of one: {group}@stages.NAME=OPTION, with NAME as --help shows it; to "
            f"add one: +{group}@stages.NAME=OPTION."
        )
    if group == "export":
        return "To add a format: +export@export.NAME=FORMAT (hf, gguf, compressed_tensors, onnx or executorch)."
    return ""


def refuse_unknown(composed: Any) -> None:
    """Refuse what a + has put where nothing reads it: a plus makes Hydra accept any name.

    Raises:
        UserError: naming the first of them.
    """
    for place, node in _nodes(composed):
        of = OmegaConf.get_type(node)
        known = {f.name for f in fields(of)} if is_dataclass(of) else set(map(str, node))
        for name in map(str, node):
            if name not in known:
                raise UserError(*no_such_setting(name, place, of))


def refuse_values(composed: Any) -> None:
    """Make every part of a config by itself, so that what one of them refuses is named by where it was typed.

    Raises:
        UserError: of the innermost part that refuses.
    """
    for place, node in reversed(list(_nodes(composed))):
        if place and is_dataclass(OmegaConf.get_type(node)):
            with speaking_of(_as_written(place), place):
                OmegaConf.to_object(node)


def _as_written(place: str) -> str:
    """How the parts themselves, which do not know their place, write the beginning of a setting's name; a pattern."""
    first, _, last = place.rpartition(".")
    if first in ("stages", "export"):
        return rf"(?<![\w.])(?:stages\.)?(?:{'|'.join((*STAGE_GROUPS, 'compensate', 'export'))})"
    group = {"teacher": "model", "second": "data"}.get(place, last)
    return rf"(?<![\w.])(?:stages\.)?{group}"


def _nodes(node: Any, place: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every part of a config that has names in it, with its place, those around it first."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    yield place, node
    for name in map(str, node):
        if not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name):
            yield from _nodes(node._get_node(name), f"{place}.{name}" if place else name)
