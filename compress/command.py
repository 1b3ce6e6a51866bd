"""From what was typed to a run, and from an error to a message."""

from __future__ import annotations

import difflib
import errno
import logging
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from compress.config import CONF, Config, Mode, build, listing, pipelines, register
from compress.errors import UserError, disk_is_full
from compress.paths import cache_folder

log = logging.getLogger("compress")

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

MEANT = {
    "EmbeddedModel": "A model of yours is model=hf model.path=DIR_OR_ID. ",
    "Sotu": "A text of yours is data=text data.path=FILE_OR_FOLDER. ",
    "PythonDocs": "Another text of yours is data@second=text second.path=FILE_OR_FOLDER. ",
}
"""Of what is there by default -> what somebody who sets something else in it has probably forgotten."""
UNFINISHED = {"config.yaml", "run.log", "run.json", "logs", ".hydra", "compress.log"}
"""What a run that did not come to its end leaves in its folder."""
ARTIFACTS = "artifacts"
"""That, if it was killed while it wrote them; they are written again."""
GROUPS = ("pipeline", "budget", "sweep", "launch", "model", "data", "prune", "distill", "quant", "recover", "export")
ADDED = ("pipeline", "sweep", "launch", "prune", "distill", "quant", "recover")
"""Groups that no default names: they take a + in front."""


def compose(overrides: list[str]) -> Any:
    """Compose a config outside Hydra's command line.

    Raises:
        UserError: an override that Hydra refuses.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(version_base="1.3", config_module=CONF.removeprefix("pkg://")):
            return hydra_compose(config_name="config", overrides=overrides)
    except Exception as error:
        raise as_user_error(error) or error from error


def run_overrides(overrides: list[str]) -> dict[str, Any]:
    """What `compress.run` does."""
    composed = compose(overrides)
    try:
        folder = fresh_folder(Path(str(composed.output)))
        return execute(composed, folder, overrides)
    except Exception as error:
        translated = as_user_error(error)
        if translated is None or translated is error:
            raise
        raise translated from error


def fresh_folder(folder: Path) -> Path:
    """`folder`, or the same with a number behind it if something lies there that no unfinished run has left."""
    candidate, number = folder, 1
    while taken(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}_{number}")
    return candidate


def taken(folder: Path) -> bool:
    """Whether something in `folder` is a result, or somebody else's."""
    if not folder.is_dir():
        return folder.exists()
    names = {file.name for file in folder.iterdir()}
    unfinished = UNFINISHED | {ARTIFACTS} if killed(folder) else UNFINISHED
    # a run of ours writes its log beside its config
    return bool(names - unfinished) or ("config.yaml" in names and "run.log" not in names)


def killed(folder: Path) -> bool:
    """Whether a run of ours began in `folder` and did not come to its report: what it exported is written again."""
    return (folder / "run.log").is_file() and not (folder / "report.json").exists()


def execute(composed: Any, output: Path, overrides: list[str], progress: Any = None) -> dict[str, Any]:
    """Build a composed config and do what its mode says."""
    from omegaconf import OmegaConf

    config = build(composed)
    if config.mode is Mode.list:
        return {"message": listing(), "status": 0}
    if config.mode is Mode.verify:
        from compress.export.check import check_artifact

        return check_artifact(config.artifact, config.threads)
    if config.mode is Mode.sweep_report:
        from compress.sweep.write import report_folder

        return report_folder(config.sweep.folder)
    if config.mode is Mode.estimate:
        from compress.estimate.run import run_estimate

        return run_estimate(config, cache_folder())
    if config.mode is Mode.preflight:
        from compress.preflight import run_preflight

        return run_preflight(config, progress)
    from compress.pipeline import run
    from compress.preparation import check_writable

    check_writable(output, "output=DIR")
    if killed(output):
        shutil.rmtree(output / ARTIFACTS, ignore_errors=True)
    (output / "config.yaml").write_text(OmegaConf.to_yaml(composed, resolve=True))
    handler = logging.FileHandler(output / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    begin = time.monotonic()
    try:
        return run(config, output, progress, overrides)
    except Exception:
        log.exception("stopped after %.0f s", time.monotonic() - begin)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


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
    if any(type(cause).__name__ == "TerminatedWorkerError" for cause in chain):  # joblib's; it may not be installed
        return UserError(
            "a worker of this sweep was killed, by hand or for want of memory.",
            "The same command goes on with what is left; fewer at a time need less memory: sweep.workers=1.",
        )
    for cause in chain:
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
    unreadable = _unreadable(chain)
    if unreadable or any(isinstance(cause, (HydraException, OmegaConfBaseException)) for cause in chain):
        return unreadable or UserError(*_config_message(chain))
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
        if isinstance(given, str) and "=" in given:
            key, _, value = given.partition("=")
            return UserError(
                f"{given} cannot be read as KEY=VALUE.",
                "A value with spaces, commas, brackets or letters beyond ASCII goes in double quotes inside single "
                f"ones: '{key}=\"{value}\"'",
            )
    return None


def _config_message(chain: list[BaseException]) -> tuple[str, str]:
    """Problem and hint for what Hydra or OmegaConf refuse."""
    text, all_text = str(chain[0]), "\n".join(map(str, chain))
    known = _no_such_option(text) or _no_such_part(text, all_text)
    if known is not None:
        return known
    if match := re.search(r"Could not override '(\w+)'", text):
        near = difflib.get_close_matches(match[1], [*GROUPS, *Config.__dataclass_fields__], n=1)
        meant = near[0] if near else match[1]
        return f"there is no {match[1]!r} to change.", f"Did you mean {'+' * (meant in ADDED)}{meant}=...?"
    if match := re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", all_text):
        meant = MEANT.get(match[2], "")
        return (
            f"there is no setting {match[1]!r} in {match[2]}.",
            f"{meant}The same command with --help shows all settings.",
        )
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


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[:2]).rstrip(".")
