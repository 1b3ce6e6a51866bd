"""The one exception for a mistake of the user's: shown as a message, never as a traceback; exit status 2."""

from __future__ import annotations


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
