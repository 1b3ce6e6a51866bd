"""From an error to one message that says what to type."""

from __future__ import annotations

import difflib
import errno
import logging
import re
import sys
import traceback
from pathlib import Path

from compress.config import Config, listing, pipelines
from compress.errors import UserError, disk_is_full
from compress.unknown import GROUPS, how_to_type, no_such_setting

log = logging.getLogger("compress")

OF_OTHERS = (
    (
        "TerminatedWorkerError",  # joblib's
        "a worker of this sweep was killed, by hand or for want of memory.",
        "The same command goes on with what is left; fewer at a time need less memory: sweep.workers=1.",
    ),
    (
        'Could not detect "srun"',
        "+launch=slurm was asked for, and this machine has no SLURM (there is no srun).",
        "Start it on a login node of the cluster; +launch=submitit_local and +launch=joblib run here.",
    ),
    (
        "Could not find any running Ray instance",
        "+launch=ray_cluster was asked for, and no Ray cluster runs here.",
        "Start one (ray start --head), or take +launch=ray, which starts its own.",
    ),
    ("ValueError: COMPRESS_KERNELS=", "", ""),
)
"""(What the name or the words of an error hold, what that means: the same words where empty, what to do)."""

UNWRITABLE = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}

ADDED = ("pipeline", "sweep", "launch")
"""Groups that no default names: they take a + in front."""


def as_user_error(error: BaseException) -> UserError | None:
    """The message for a mistake of the user's; None for a fault of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
    known = next(filter(None, map(_known, chain)), None) or _unreadable(chain)
    if known is None and any(isinstance(cause, (HydraException, OmegaConfBaseException)) for cause in chain):
        known = UserError(*_config_message(chain))
    return known


def _known(cause: BaseException) -> UserError | None:
    """For what the system, or a library, says of itself."""
    for said, problem, hint in OF_OTHERS:
        if said in f"{type(cause).__name__}: {cause}":
            return UserError(problem or f"{cause}.", hint)
    if disk_is_full(cause):
        return UserError(
            f"the disk is full: {getattr(cause, 'filename', None) or _first_line(str(cause))}.",
            "Make room; what was finished is kept, and the same command goes on.",
        )
    # only while a folder was being made: anywhere else a missing file is a fault of ours
    if isinstance(cause, OSError) and cause.errno in UNWRITABLE and _was_making_a_folder(cause):
        return UserError(
            f"cannot write {cause.filename}: {cause.strerror}.",
            "Choose another folder: output=DIR, or COMPRESS_CACHE=DIR in front of the command.",
        )
    return None


def tell(error: BaseException, folder: Path | None, which: str = "") -> int:
    """Print one message; the exit status that goes with it. `which` says which run of a sweep it was."""
    user_error = as_user_error(error)
    if user_error is not None:
        print(f"error: {which}{user_error.problem}", file=sys.stderr)
        if user_error.hint:
            print(user_error.hint, file=sys.stderr)
        return 2
    where = (
        f" The traceback is in {folder / 'run.log'}." if folder is not None and (folder / "run.log").exists() else ""
    )
    print(f"error: {which}a fault of ours: {type(error).__name__}: {error}.{where}", file=sys.stderr)
    if not where:
        log.exception("fault", exc_info=error)
        traceback.print_exception(error)
    return 1


def _was_making_a_folder(error: OSError) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(frame.name in ("mkdir", "makedirs", "_save_config") for frame in frames)


def _unreadable(chain: list[BaseException]) -> UserError | None:
    """For what Hydra's grammar makes nothing of."""
    for cause in chain:
        said = str(cause)
        if isinstance(cause, ValueError) and said.startswith("Config group override must be"):
            hint = "To leave a stage out type '~stages.NAME', an export '~export.NAME'."
            return UserError("a group cannot be null.", hint)
        ambiguous = re.search(r"Ambiguous value for argument '([^']*)'", said)
        given = ambiguous[1] if ambiguous else getattr(cause, "override", None)
        if isinstance(given, str) and given.isidentifier():
            near = difflib.get_close_matches(given, pipelines(), n=1)
            hint = f"Did you mean +pipeline={near[0]}?" if near else "'python -m compress' lists what to type."
            return UserError(f"{given} is no setting: these are KEY=VALUE.", hint)
        if isinstance(given, str) and "=" in given:
            key, _, value = given.partition("=")
            several = "Several values are a sweep: put -m in front of the settings. " if ambiguous else ""
            return UserError(
                f"{given} cannot be read as KEY=VALUE.",
                f"{several}A value with spaces, commas, brackets or letters beyond ASCII goes in double quotes inside "
                f"single ones: '{key}=\"{value}\"'",
            )
    return None


def _config_message(chain: list[BaseException]) -> tuple[str, str]:
    """Problem and hint for what Hydra or OmegaConf refuse."""
    text, all_text = str(chain[0]), "\n".join(map(str, chain))
    known = _no_such_option(text) or _no_such_part(text, all_text) or _of_another_kind(all_text) or _there_already(text)
    if known is not None:
        return known
    if match := re.search(r"Could not override '(\w+)'", text):
        if hint := how_to_type(match[1]):
            return f"there is no {match[1]!r} to change.", hint
        near = difflib.get_close_matches(match[1], [*GROUPS, *Config.__dataclass_fields__], n=1)
        hint = "The same command with --help shows all settings; those of a stage are stages.NAME.SETTING."
        if near and (near[0] != match[1] or near[0] in ADDED):
            hint = how_to_type(near[0]) or f"Did you mean {'+' * (near[0] in ADDED)}{near[0]}=...?"
        return f"there is no {match[1]!r} to change.", hint
    if (unknown := _no_such_setting(chain)) is not None:
        return unknown
    return _first_line(
        "\n".join(map(str, chain[:2]))
    ) + ".", "See 'python -m compress --help' for the settings, or 'python -m compress' for the pipelines."


def _no_such_option(text: str) -> tuple[str, str] | None:
    """For a name that a group does not have."""
    match = re.search(r"Could not find '([\w@.]+)/([^']+)'", text)
    if match is None:
        return None
    group, option = match[1], match[2]
    if group == "hydra":
        return (
            f"{group}/{option} is not installed.",
            "Launchers (+launch=...) and the search (+sweep=optuna) come with: pip install -e '.[sweeps]'",
        )
    if group == "pipeline":
        near = difflib.get_close_matches(option, pipelines(), n=1)
        meant = f"Did you mean +pipeline={near[0]}? " if near else ""
        return f"there is no pipeline {option!r}.", f"{meant}The pipelines are:\n{listing()}"
    options = re.findall(r"^\t(\w+)$", text, re.MULTILINE)
    shown = [name for name in options if not name.endswith("_schema")]
    return f"there is no {group}={option}.", f"Options of {group}: {', '.join(shown)}."


def _no_such_part(text: str, all_text: str) -> tuple[str, str] | None:
    """For a stage or an export that the pipeline does not have: another in its place, or a setting of it."""
    if match := re.search(r"append to your default list use (\+\w+@(stages|export)\.(\w+)=.*)", text):
        part = "stage" if match[2] == "stages" else "export"
        return f"there is no {part} {match[3]!r} to change.", f"To add it: {match[1]}."
    match = re.search(r"full_key: (stages|export)\.(\w+)$", all_text, re.MULTILINE)
    if match is None:
        return None
    kind, name = match[1], match[2]
    if kind == "export":
        formats = "hf, gguf, compressed_tensors, onnx or executorch"
        return f"there is no export {name!r} here.", f"To add it: +export@export.{name}=FORMAT ({formats})."
    return (
        f"this pipeline has no stage {name!r}.",
        "'python -m compress' lists the pipelines and what they do; the same command with --help shows the stages of "
        f"this one. To add one: +GROUP@stages.{name}=NAME, with a GROUP of prune, distill, quant or recover.",
    )


KINDS = (
    ("could not be converted to Integer", "a whole number is expected", "In digits alone: 100000."),
    ("could not be converted to Float", "a number is expected", "A fraction too is written in digits: 0.85."),
    ("is not a valid bool", "true or false is expected", "Type {key}=true or {key}=false."),
    ("is not a ListConfig", "a list is expected", "Type '{key}=[{value}]'."),
    ("Cannot assign", "it has settings of its own", "Type {key}.NAME=VALUE; --help shows the names."),
    ("is not a subclass of", "it has settings of its own", "Type {key}.NAME=VALUE; --help shows the names."),
)
"""(In what OmegaConf says of a value, what that means, what to type)."""


def _of_another_kind(text: str) -> tuple[str, str] | None:
    """For a value that its setting cannot hold."""
    match = re.search(r"Error merging override ([\w.@]+)=(.*)", text)
    if match is None:
        return None
    key, value = match[1], match[2]
    if options := re.search(r"expected one of \[([^]]*)\]", text):
        near = difflib.get_close_matches(value, options[1].split(", "), n=1)
        return f"{key}={value}: it is one of {options[1]}.", f"Did you mean {key}={near[0]}?" if near else ""
    found = next(((means, hint) for said, means, hint in KINDS if said in text), None)
    return None if found is None else (f"{key}={value}: {found[0]}.", found[1].format(key=key, value=value))


def _there_already(text: str) -> tuple[str, str] | None:
    """For what is added a second time, and what is left out without being there."""
    if match := re.search(r"Multiple values for ([\w@.]+)\. .*'override [^:]+: (\w+)'", text):
        hint = f"Without the plus this one comes in its place: {match[1]}={match[2]}."
        hint += " One more beside it needs a name of its own." if "@" in match[1] else ""
        return f"{match[1]} is there already.", hint
    if match := re.search(r"Could not delete from config\. '([\w.]+)' does not exist", text):
        return f"there is no {match[1]} to leave out.", "The same command with --help shows what there is."
    if "Could not override 'teacher." in text:
        return "there is no teacher beside the original.", "To add one: +model@teacher=hf teacher.path=DIR_OR_ID."
    return None


def _no_such_setting(chain: list[BaseException]) -> tuple[str, str] | None:
    """For a field that the object it was set in does not have."""
    for cause in chain:
        match = re.search(r"Key '([^']+)' (?:is )?not in '\w+'\s+full_key: (\S+)", str(cause))
        if match is None:
            continue
        return no_such_setting(match[1], match[2].rpartition(".")[0], getattr(cause, "object_type", None))
    return None


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[:2]).rstrip(".")
