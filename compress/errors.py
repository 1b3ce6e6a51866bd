"""The one exception for a mistake of the user's: shown as a message, never as a traceback; exit status 2."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def speaking_of(group: str, place: str) -> Iterator[None]:
    """Messages about settings of a group (model.path) name the place it was put in (teacher.path).

    `group` is a pattern.
    """
    try:
        yield
    except UserError as error:
        said = (re.sub(rf"\b(?:{group})(?=[.=])", place, part) for part in (error.problem, error.hint))
        raise UserError(*said) from error


def disk_is_full(error: BaseException) -> bool:
    """Whether writing failed for want of room; torch and safetensors say so in words of their own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return bool(re.search(r"No space left on device|Disk quota exceeded|inline_container\.cc.*writ", str(error), re.S))
