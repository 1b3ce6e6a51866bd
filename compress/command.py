"""From what was typed to a run."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from compress.config import CONF, Mode, build, listing, register
from compress.durable import held
from compress.errors import UserError
from compress.mistakes import as_user_error
from compress.paths import cache_folder

log = logging.getLogger("compress")

LOCK = "run.lock"
"""Held in the folder of a run while it goes."""
UNFINISHED = {"config.yaml", "run.log", "run.json", "logs", ".hydra", "compress.log", LOCK}
"""What a run that did not come to its end leaves in its folder."""
ARTIFACTS = "artifacts"
"""That, if it was killed while it wrote them; they are written again."""


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
    if in_use(folder):
        return True
    names = {file.name for file in folder.iterdir()}
    unfinished = UNFINISHED | {ARTIFACTS} if killed(folder) else UNFINISHED
    # a run of ours writes its log beside its config
    return bool(names - unfinished) or ("config.yaml" in names and "run.log" not in names)


def in_use(folder: Path) -> bool:
    """Whether a run that is still going writes there."""
    if not (folder / LOCK).exists():
        return False
    try:
        with alone_in(folder):
            return False
    except UserError:
        return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold `folder` while a run writes there.

    Raises:
        UserError: another run has it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder / LOCK, timeout=0, remove=True))
        except TimeoutError:
            hint = "Give this one a folder of its own: output=DIR."
            raise UserError(f"another run writes into {folder} now.", hint) from None
        yield


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
    with alone_in(output):
        if killed(output):
            shutil.rmtree(output / ARTIFACTS, ignore_errors=True)
        (output / "config.yaml").write_text(OmegaConf.to_yaml(composed, resolve=True), encoding="utf-8")
        with logged_in(output / "run.log"):
            return run(config, output, progress, overrides)


@contextmanager
def logged_in(file: Path) -> Iterator[None]:
    """What is logged goes into `file`, and so does the traceback of what ends it."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    begin = time.monotonic()
    try:
        yield
    except Exception:
        log.exception("stopped after %.0f s", time.monotonic() - begin)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
