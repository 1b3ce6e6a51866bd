"""The refusal that GPT-2 and GPT-NeoX share: their configs cannot state a head size."""

from __future__ import annotations

from compress.arch.shape import Shape, Widths
from compress.errors import UserError


def check_head_dim(family: str, shape: Shape, widths: Widths) -> None:
    """Refuse widths under which width / heads is no longer the head size the weights have.

    Raises:
        UserError: names the fractions of `heads` and `hidden` that go together.
    """
    if widths.hidden == widths.heads * shape.head_dim:
        return
    raise UserError(
        f"A {family} config has no head size of its own: it is width / heads = {shape.head_dim} here, which "
        f"{widths.heads} heads in a width of {widths.hidden} would break.",
        f"Cut both by the same fraction ({widths.heads} heads go with a width of {widths.heads * shape.head_dim}; "
        "the fraction of both that stays must give whole heads and a width of the wanted multiple), "
        "or keep both (heads=1.0, hidden=1.0) and cut `mlp` and `layers`.",
    )
