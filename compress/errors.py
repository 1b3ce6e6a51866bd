"""The one exception for a mistake of the user's: shown as a message, never as a traceback; exit status 2."""

from __future__ import annotations

import errno
import re


class UserError(Exception):
    """Something the user can mend.

    Args:
        problem: what was given and what was expected, one or two sentences.
        hint: what to type or do instead.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(f"{problem}\n{hint}" if hint else problem)
        self.problem = problem
        self.hint = hint


def disk_is_full(error: BaseException) -> bool:
    """Whether writing failed for want of room; torch and safetensors say so in words of their own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return bool(re.search(r"No space left on device|Disk quota exceeded|inline_container\.cc.*writ", str(error), re.S))
