"""Fractions of damage won back, on rows made by hand."""

from __future__ import annotations

import pytest

from compress.report import format as form
from compress.report.won_back import won_back
from tests.report.sample import figures, stage


def chain(*rows: tuple[str, str, float, float]) -> list[dict[str, object]]:
    return [stage(name, kind, figures(kl, second), {}) for name, kind, kl, second in rows]


BASELINE = figures(0.0, 0.0)


def test_the_first_healer_starts_from_the_original() -> None:
    first, other = won_back(BASELINE, chain(("cut", "prune", 0.8, 1.0), ("heal", "distill", 0.2, 0.5)))
    assert (first["stage"], first["of"], first["text"]) == ("heal", "cut", "held-out")
    assert (first["kl_before"], first["kl_damaged"], first["kl_healed"]) == (0.0, 0.8, 0.2)
    assert first["fraction"] == pytest.approx(0.75)  # 0.6 of 0.8
    assert other["text"] == "other text"
    assert other["fraction"] == pytest.approx(0.5)


def test_the_second_healer_starts_from_what_was_left() -> None:
    rows = chain(
        ("prune", "prune", 0.8, 1.0),
        ("distill", "distill", 0.2, 0.5),
        ("quant", "nf4", 0.4, 0.6),
        ("recover", "qlora", 0.3, 0.4),
    )
    found = won_back(BASELINE, rows)
    assert [(entry["stage"], entry["of"]) for entry in found] == [("distill", "prune")] * 2 + [("recover", "quant")] * 2
    # the rounding added 0.4 - 0.2, of which 0.1 came off; on the other text twice what it added
    assert found[2]["fraction"] == pytest.approx(0.5)
    assert found[2]["kl_before"] == 0.2
    assert found[3]["fraction"] == pytest.approx(2.0)


def test_nothing_damaged_has_no_fraction() -> None:
    found = won_back(BASELINE, chain(("prune", "prune", 0.0, 0.0), ("distill", "distill", 0.1, 0.1)))
    assert [entry["fraction"] for entry in found] == [None, None]


def test_a_student_is_healed_of_what_it_began_with() -> None:
    student = {"kl_to_teacher": 0.8, "second_kl_to_teacher": 1.0}
    found = won_back(BASELINE, chain(("distill", "distill", 0.2, 0.5)), student)
    assert form.fractions({"won_back": found})[0] == (
        "distill took away 75% of the KL that the student began with on the held-out text (0.800 -> 0.200)."
    )


@pytest.mark.parametrize(
    ("harms", "heals"),
    [("prune_search", "distill"), ("prune_in_steps", "distill"), ("grid", "qlora"), ("qat", "qlora")],
)
def test_every_kind_of_damage_is_known(harms: str, heals: str) -> None:
    found = won_back(BASELINE, chain(("cut", harms, 0.8, 1.0), ("heal", heals, 0.2, 0.5)))
    assert [(entry["of"], entry["fraction"]) for entry in found] == [("cut", pytest.approx(0.75)), ("cut", 0.5)]


@pytest.mark.parametrize(
    "kinds",
    [["prune"], ["distill"], ["prune", "nf4", "distill"], ["nf4", "distill"], ["prune", "qlora"], []],
    ids=" ".join,
)
def test_no_healer_right_behind_what_it_heals(kinds: list[str]) -> None:
    assert won_back(BASELINE, chain(*[(kind, kind, 0.5, 0.5) for kind in kinds])) == []


@pytest.mark.parametrize(
    ("healed", "said"),
    [
        (0.2, "heal took away 75% of the KL that cut added on the held-out text (0.000 -> 0.800 -> 0.200)."),
        (1.0, "heal leaves 25% more than the KL that cut added on the held-out text (0.000 -> 0.800 -> 1.000)."),
        (float("nan"), "cut added no KL on the held-out text that heal could take away (0.000 -> 0.800 -> nan)."),
    ],
)
def test_told(healed: float, said: str) -> None:
    rows = chain(("cut", "prune", 0.8, 1.0), ("heal", "distill", healed, 0.5))
    sentences = form.fractions({"won_back": won_back(BASELINE, rows)})
    assert sentences[0] == said
    assert "heal took away 50% of the KL that cut added on the other text" in sentences[1]


def test_two_healers_of_one_damage() -> None:
    rows = chain(("cut", "prune", 1.0, 1.0), ("solve", "compensate", 0.5, 0.5), ("heal", "distill", 0.1, 0.6))
    found = won_back(BASELINE, rows)
    assert [entry["stage"] for entry in found] == ["solve", "solve", "heal", "heal"]
    assert [entry["of"] for entry in found] == ["cut"] * 4
    assert [entry["fraction"] for entry in found] == pytest.approx([0.5, 0.5, 0.9, 0.4])
    assert [entry["fraction_alone"] for entry in found] == pytest.approx([0.5, 0.5, 0.8, -0.2])
    sentences = form.fractions({"won_back": found})
    assert sentences[0].startswith("solve took away 50% of the KL that cut added on the held-out text")
    assert sentences[2] == (
        "after heal, 90% of the KL that cut added on the held-out text is gone; heal itself took away 80% of what it "
        "was given (0.000 -> 1.000 -> 0.500 -> 0.100)."
    )
    assert "heal itself added another 20% of what it was given" in sentences[3]
    rows = chain(("cut", "prune", 1.0, 1.0), ("solve", "compensate", 0.5, 0.5), ("heal", "distill", 0.501, 0.5))
    hardly = form.fractions({"won_back": won_back(BASELINE, rows)})
    assert "heal itself took away 0% of what it was given" in hardly[2]


def test_training_on_the_text_itself_is_told() -> None:
    """A perplexity that fell by fitting the text must not be read as what was kept of the original."""
    names = ("kept", "fitted", "steps")
    plain, labelled, inside = chain(*((name, "distill", 0.2, 0.5) for name in names))
    plain["fields"], labelled["fields"] = {"loss": {"kl": 1.0, "ce": 0.0}}, {"loss": {"kl": 0.5, "ce": 0.5}}
    inside["fields"] = {"steps": 2, "heal": labelled["fields"]}
    said = form.healing({"won_back": [], "stages": [plain, labelled, inside]})
    assert len(said) == 2
    for name, sentence in zip(names[1:], said, strict=True):
        assert sentence.startswith(f"{name} trained on the text's own tokens too (loss.ce=0.5)")
