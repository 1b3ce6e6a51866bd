"""The Python language reference as a second domain: text of another kind that needs no download."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from compress.data.corpus import Corpus
from compress.errors import UserError


@dataclass
class PythonDocs:
    """The help topics every CPython carries (`pydoc_data.topics`, 0.5 MB), all held out.

    They differ from one Python version to the next: compare figures on them only within one. The fingerprint of the
    corpus tells, and its origin names the version.
    """

    def load(self) -> Corpus:
        """Read the topics, in the order of their names.

        Raises:
            UserError: this Python was built without them.
        """
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise UserError(
                f"This Python ({sys.executable}) comes without its help topics (pydoc_data).",
                "Use a complete CPython, or give a second text of your own.",
            ) from error
        version = ".".join(map(str, sys.version_info[:3]))
        return Corpus(
            "python-docs",
            train=(),
            calibration=(),
            heldout=tuple(topics[name] for name in sorted(topics)),
            origin=f"Python {version} language reference (pydoc_data.topics), PSF licence",
        )
