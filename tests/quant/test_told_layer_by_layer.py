"""What a calibration says of every layer while it works."""

from __future__ import annotations

from compress.quant.run import layer_by_layer, share
from compress.stage import Quiet


def test_every_layer_is_told_once_with_the_error_before_and_after() -> None:
    errors, plain = {"lm_head": 0.5}, {"lm_head": 0.9}
    lines: list[str] = []
    units: list[float] = []

    class Listening(Quiet):
        def say(self, message: str) -> None:
            lines.append(message)

    done = layer_by_layer(errors, plain, Listening(), units.append)
    for number in range(3):
        if number != 1:  # a layer whose rows fit no block has nothing to tell
            for name, error in (("q_proj", 0.01), ("down_proj", 0.03)):
                errors[f"layers.{number}.{name}"], plain[f"layers.{number}.{name}"] = error, 2 * error
        done(1)
    assert units == [1, 1, 1]
    said = "error 2%, rounded to nearest 4%; most in down_proj (3%)"
    assert lines == [f"layer 0: {said}", f"layer 2: {said}"]


def test_small_errors_are_no_zeros() -> None:
    assert share(5.44e-5) == "0.0054%" and share(0.021) == "2.1%"
