"""Benchmark tasks through lm-eval (the optional extra `tasks`): its own ones, or YAML files of the user's.

A local task is a YAML file in `include_path`; its data files must be named by absolute path. For instance:

    task: my_choices
    dataset_path: json
    dataset_kwargs: {data_files: {test: /abs/choices.jsonl}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{query}}\\nAnswer:"
    doc_to_choice: choices
    doc_to_target: gold
    metric_list: [{metric: acc}, {metric: acc_norm}]
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.util
import io
import logging
import math
import os
import random
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.paths import cache_folder

logger = logging.getLogger("compress")

BOOTSTRAP = 1000
"""Resamples for the standard error of metrics that are no mean; those of means have a closed form."""


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: list[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Scores of `model`, with no examples in the prompt unless a task asks for some.

    The random state of Python, numpy and torch is left as it was, and so is the model's training mode.

    Args:
        model: transformers (or PEFT) causal language model, on its device.
        tokenizer: its tokenizer.
        tasks: names of tasks, groups or tags.
        include_path: folder of the user's own task YAML files; they go before lm-eval's of the same name.
        limit: examples per task, from the first on; None for all.
        batch_size: sequences at once.
        seed: draws the examples put in a prompt.

    Returns:
        Per task `samples` and each metric, as `acc` and `acc_stderr`; a metric of a named filter is `metric,filter`. A
        standard error that is not defined (one sample, say) is left out.

    Raises:
        UserError: lm-eval is not installed, `include_path` is no folder, a task is unknown or its data cannot be had.
    """
    _check_installed(include_path)
    was_training = bool(model.training)
    with _quiet(), _random_state_kept(seed):
        manager, all_local = _manager(tasks, include_path)
        with _datasets_in_our_cache(all_local):
            loaded = _load(manager, tasks, seed)
        try:
            results = _evaluate(model, tokenizer, loaded, limit, batch_size)
        finally:
            model.train(was_training)
    return {name: _plain(scores) for name, scores in results.items()}


def check_tasks(tasks: list[str], include_path: str | None) -> None:
    """Before any work, what `run_tasks` would find out after it; nothing without tasks.

    Raises:
        UserError: lm-eval is not installed, `include_path` is no folder, or a task is unknown.
    """
    if tasks:
        _check_installed(include_path)
        with _quiet():
            _manager(tasks, include_path)


def _check_installed(include_path: str | None) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("evaluate.tasks needs lm-eval, which is not installed.", "Type: pip install -e '.[tasks]'.")
    if include_path is not None and not Path(include_path).expanduser().is_dir():
        raise UserError(
            f"There is no folder {include_path} with task YAML files.",
            "Give one that exists: evaluate.tasks_path=DIR.",
        )


def _manager(tasks: list[str], include_path: str | None) -> tuple[Any, bool]:
    """The index that knows all `tasks`, and whether the user's own folder is enough."""
    from lm_eval.tasks import TaskManager

    folder = None if include_path is None else str(Path(include_path).expanduser().resolve())
    local = TaskManager(include_path=folder, include_defaults=False)
    if set(tasks) <= set(local.all_tasks):
        return local, True
    logger.info("Indexing lm-eval's tasks")
    manager = TaskManager(include_path=folder)
    for name in tasks:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, [*local.all_tasks, *manager.all_tasks], n=5)
            where = f"{include_path} or lm-eval" if include_path else "lm-eval (evaluate.tasks_path is not set)"
            known = f"Close names: {', '.join(dict.fromkeys(close))}." if close else "No name is close to it."
            mine = f" In {include_path}: {', '.join(local.all_tasks) or 'none'}." if include_path else ""
            raise UserError(
                f"There is no task {name!r} in {where}.", f"{known}{mine} 'lm-eval ls tasks' lists lm-eval's."
            )
    return manager, False


def _load(manager: Any, tasks: list[str], seed: int) -> Any:
    logger.info("Loading the data of %s", ", ".join(tasks))
    try:
        loaded = manager.load(tasks)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # of these kinds: no network, data file missing or broken, a YAML file that lacks or misspells something
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"The data of tasks {', '.join(tasks)} could not be loaded: {reason}",
            "lm-eval's tasks need the network once; a local one needs absolute paths in dataset_kwargs.data_files.",
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    return loaded


def _evaluate(model: Any, tokenizer: Any, loaded: Any, limit: int | None, batch_size: int) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    # a copy: a tokenizer without a padding token is given one, which must not end up in an artifact
    wrapped = HFLM(
        pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, device=str(model.device)
    )
    # not simple_evaluate: it seeds the whole process, runs git and asks the system about itself
    scores = lm_eval.evaluate(wrapped, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False)
    found: dict[str, Any] = scores["results"]
    return found


def _plain(scores: dict[str, Any]) -> dict[str, float]:
    plain: dict[str, float] = {}
    for key, value in scores.items():
        if isinstance(value, Real) and math.isfinite(value):
            name = "samples" if key == "sample_len" else key.removesuffix(",none")
            plain[name] = float(value)
    return plain


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars, no log lines, and no pool of processes for a bootstrap (each would copy the model)."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets", "huggingface_hub")]
    levels = [each.level for each in loggers]
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@contextlib.contextmanager
def _random_state_kept(seed: int) -> Iterator[None]:
    """Seed everything inside, restore it after: an evaluation must not change what is trained next."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _datasets_in_our_cache(all_local: bool) -> Iterator[None]:
    """Keep the Arrow copies of the user's own files out of the home folder's Hugging Face cache.

    Datasets of lm-eval's own tasks stay where they are: they may lie there from an earlier download.
    """
    import datasets

    if not all_local or "HF_DATASETS_CACHE" in os.environ:
        yield
        return
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache_folder() / "datasets"
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
