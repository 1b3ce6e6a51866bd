"""The proof of an artifact: reloaded in a fresh process, it must say what the model in the pipeline said.

    KL(pipeline || artifact) = sum_v p(v) (log p(v) - log q(v)), in nats, of every position; the verdict is on the mean

Where the runtime rounds activations itself, the pipeline's model is not what it can say; the verdict is then on the KL
from a torch model that rounds them the same way, and the KL from the pipeline's model is told beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from compress.export.fresh import ReloadError

if TYPE_CHECKING:
    from torch import Tensor

    from compress.export.base import Expectation
    from compress.export.fresh import FreshProcess


@dataclass(frozen=True)
class RoundTrip:
    """What came out of the reload, compared with the pipeline's model."""

    verified: bool | None
    """None: it was not reloaded."""
    mean_kl: float
    max_kl: float
    top1_agreement: float
    first_difference: int | None
    """First position at which the likeliest tokens differ."""
    load_seconds: float = 0.0
    error: str = ""
    loaded: bool = True
    emulation: dict[str, Any] | None = None
    """`scheme`, `mean_kl`, `max_kl`, `top1_agreement` from a torch emulation of the runtime; what the verdict is on."""

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)

    @classmethod
    def left_out(cls) -> RoundTrip:
        """Nobody asked."""
        return cls(None, float("nan"), float("nan"), float("nan"), None, loaded=False)

    @classmethod
    def failed(cls, why: str, loaded: bool = True) -> RoundTrip:
        """Nothing could be compared."""
        return cls(False, float("inf"), float("inf"), 0.0, 0, error=why, loaded=loaded)


def verify(process: FreshProcess, expectation: Expectation, ids: Tensor) -> RoundTrip:
    """Ask a reloaded artifact about `ids` [1, length] and compare."""
    try:
        found = process.logits(ids[0])
    except ReloadError as error:
        return RoundTrip.failed(f"the runtime cannot run it: {error}", loaded=False)
    told = compare(expectation.pipeline, found, expectation.tolerance)
    if expectation.emulated is not None:
        judge = compare(expectation.emulated, found, expectation.tolerance)
        figures = {key: getattr(judge, key) for key in ("mean_kl", "max_kl", "top1_agreement")}
        emulation = {"scheme": expectation.scheme, **figures}
        told = replace(told, verified=judge.verified, error=judge.error, emulation=emulation)
    return replace(told, load_seconds=process.load_seconds)


def compare(expected: Tensor, found: Tensor, tolerance: float) -> RoundTrip:
    """Compare logits [positions, vocab] of pipeline and artifact."""
    if expected.shape != found.shape:
        return RoundTrip.failed(f"logits of shape {list(found.shape)}, expected {list(expected.shape)}")
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return judged((p.exp() * (p - q)).sum(-1), expected.argmax(-1) == found.argmax(-1), tolerance)


def judged(kl: Tensor, same: Tensor, tolerance: float) -> RoundTrip:
    """The verdict on the KL of every position, and whether the likeliest tokens are the same there."""
    kl = kl.clamp_min(0)
    mean = float(kl.mean())
    # written so that NaN fails
    verified = bool(mean <= tolerance)
    return RoundTrip(
        verified,
        mean,
        float(kl.max()),
        float(same.float().mean()),
        None if bool(same.all()) else int((~same).nonzero()[0]),
        error="" if verified else f"mean KL {mean:.2e} is above the tolerance {tolerance:.0e}",
    )
