"""Keeps Lightning's own talk off the screen."""

from __future__ import annotations

import logging
import warnings


class quiet_lightning:  # noqa: N801 - a context manager
    """Keeps Lightning's banners off the screen: what it would say is either shown by us or about settings of ours."""

    def __enter__(self) -> None:
        self.loggers = [
            logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
        ]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
        self.warnings.__exit__(None, None, None)
