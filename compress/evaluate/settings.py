"""What is measured, and on how much text. None of it changes the key of a stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from compress.errors import UserError

PROMPTS = [
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Write a short thank-you note to a colleague who helped me move.",
    "List three things to check before a long bicycle ride.",
    "What is the difference between a lake and a sea?",
    "Give me a simple recipe for tomato soup.",
    "Why do leaves change their colour in autumn?",
    "Tell me a very short story about a lighthouse keeper.",
]
AT_ONCE = 16
"""Prompts that are answered together."""


@dataclass
class Evaluation:
    """Perplexity, KL to the original and top-1 agreement on two held-out texts; speed; answers to prompts."""

    measure: bool = True
    """False: no model is loaded to be measured, and artifacts are not reloaded: for a checkpoint larger than memory,
    which methods that need no data rewrite tensor by tensor."""
    tokens: int = 8192
    """Scored tokens of each text, rounded down to whole windows."""
    window: int = 1024
    """Tokens per window; the first of each is not scored. Perplexities compare within one window size only."""
    speed: bool = True
    """Measure prefill and decode of the first and the last model."""
    prefill_tokens: int = 256
    """Length of the prompt for the speed of reading."""
    decode_tokens: int = 24
    """Tokens written for the speed of writing."""
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))
    """Questions both models answer, greedily, through the chat template where there is one."""
    answer_tokens: int = 48
    """Longest answer."""
    tasks: list[str] = field(default_factory=list)
    """lm-eval tasks, run on the first and the last model."""
    tasks_path: Optional[str] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Folder with task files of your own."""
    tasks_limit: Optional[int] = None  # noqa: UP045
    """Questions per task; all by default."""

    def __post_init__(self) -> None:
        if self.tasks and not self.measure:
            raise UserError(
                f"evaluate.tasks=[{','.join(self.tasks)}] need the model, which evaluate.measure=false does not load.",
                "Drop one of the two.",
            )
        if self.window < 2:
            raise UserError(f"evaluate.window={self.window} leaves nothing to score.", "Give at least 2 tokens.")
        if self.tokens < 2:
            raise UserError(f"evaluate.tokens={self.tokens} leaves nothing to score.", "Give at least one window.")
        if self.prefill_tokens < 1 or self.decode_tokens < 1 or self.answer_tokens < 1:
            raise UserError("evaluate.prefill_tokens, decode_tokens and answer_tokens must be at least 1.")
        if self.tasks_limit is not None and self.tasks_limit < 1:
            raise UserError(f"evaluate.tasks_limit={self.tasks_limit} must be at least 1; null asks all questions.")
