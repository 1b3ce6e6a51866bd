from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from compress.arch import FAMILIES, Shape, Widths, adapter_for
from compress.errors import UserError
from compress.prune.plan import Plan, Scores, compose, select
from compress.prune.stage import Prune
from compress.prune.target import PruneTarget, solve
from tests.models import tiny

# SmolLM2-135M, the default model
SMOL = AutoConfig.for_model(
    "llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
LLAMA = adapter_for(SMOL)
SHAPE = LLAMA.shape(SMOL)


def count(widths):
    return LLAMA.non_embedding_parameters(SMOL, widths)


def kept(widths):
    return count(widths) / count(SHAPE.widths)


@pytest.mark.parametrize("keep", [0.5, 0.7, 0.8, 0.85, 0.9, 0.95])
@pytest.mark.parametrize("share", [{"layers": 0.5, "mlp": 0.5}, {"mlp": 1.0}, {"layers": 1, "mlp": 3}])
def test_mlp_width_comes_as_close_as_the_multiple_allows(keep, share):
    if keep == 0.5 and share.keys() == {"mlp"}:
        share = {"layers": 0.2, "mlp": 0.8}
    widths = solve(SHAPE, PruneTarget(keep=keep, share=share), count)
    assert widths.mlp % 64 == 0
    assert (widths.heads, widths.hidden) == (SHAPE.kv_heads, SHAPE.hidden)
    error = abs(kept(widths) - keep)
    for mlp in range(64, SHAPE.mlp + 1, 64):  # no other width is closer
        assert abs(kept(replace(widths, mlp=mlp)) - keep) >= error


def test_the_default_splits_the_removal_between_depth_and_width():
    widths = solve(SHAPE, PruneTarget(keep=0.85), count)
    assert widths == Widths(layers=28, mlp=1344, heads=3, hidden=576, query_heads=3)
    by_depth = 1 - kept(replace(SHAPE.widths, layers=widths.layers))
    assert by_depth == pytest.approx(0.075, abs=1 / 60)  # half of 15%, to half a layer


def test_every_kind_bears_its_share():
    share = {"layers": 0.25, "heads": 0.25, "hidden": 0.25, "mlp": 0.25}
    widths = solve(SHAPE, PruneTarget(keep=0.6, share=share, multiple=16), count)
    assert all(widths.of(kind) < SHAPE.widths.of(kind) for kind in share)
    assert widths.hidden % 16 == 0
    assert kept(widths) == pytest.approx(0.6, abs=0.005)


def test_explicit_fractions_stand_and_keep_takes_the_rest():
    assert solve(SHAPE, PruneTarget(keep=None, layers=0.9, mlp=0.75, heads=0.67, hidden=0.67), count) == Widths(
        layers=27, mlp=1152, heads=2, hidden=384, query_heads=3
    )
    assert solve(SHAPE, PruneTarget(keep=None, query_heads=0.67), count) == replace(SHAPE.widths, query_heads=2)
    widths = solve(SHAPE, PruneTarget(keep=0.8, layers=0.9), count)
    assert widths.layers == 27
    assert kept(widths) == pytest.approx(0.8, abs=0.015)
    assert solve(SHAPE, PruneTarget(keep=0.85, layers=1.0), count).layers == 30
    assert solve(SHAPE, PruneTarget(keep=1.0), count) == SHAPE.widths


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"keep": 0.0}, "above 0 and at most 1; 0.0"),
        ({"keep": 1.2}, "above 0 and at most 1; 1.2"),
        ({"mlp": float("nan")}, "nan was given"),
        ({"layers": -0.5}, "`layers`.*-0.5"),
        ({"keep": None}, "how much to keep"),
        ({"share": {"mlp": 1.0, "depth": 1.0}}, "depth"),
        ({"share": {"mlp": -1.0}}, "at least 0"),
        ({"multiple": 0}, "at least 1"),
        ({"keep": None, "layers": 0.01}, "leaves nothing"),
        ({"keep": None, "mlp": 0.01}, "leaves nothing"),
        ({"keep": None, "heads": 0.5}, "1.50 of 3 KV groups.*\n.*0.333, 0.667, 1 "),
        ({"keep": None, "query_heads": 0.5}, "1.50 of 3 query heads of each KV group; every group keeps as many"),
        ({"keep": None, "mlp": 0.99}, "nothing would be cut.*\n.*1472"),
        ({"keep": 0.05, "share": {"mlp": 1.0}}, "nearest is 0.281"),
        ({"keep": 0.99, "multiple": 512}, "nearest is 1.000"),
        ({"keep": 0.95, "layers": 0.5}, "layers=0.5 already fix"),
        ({"keep": 0.85, "share": {}}, "nearest is 1.000"),
    ],
)
def test_impossible_targets_are_refused_in_words(fields, problem):
    with pytest.raises(UserError, match=rf"(?s){problem}"):
        solve(SHAPE, PruneTarget(**fields), count)


@pytest.mark.parametrize("hidden", [0.3, 0.5, 0.7, 0.89])
@pytest.mark.parametrize("heads", [None, 0.67])
def test_residual_channels_are_cut_to_what_the_config_can_say(hidden, heads):
    """transformers wants the width of a Llama to be a multiple of its query heads, 9 here: no multiple of 64 is one."""
    widths = Prune(keep=None, hidden=hidden, heads=heads).widths(SMOL)
    assert widths.hidden % widths.all_query_heads == 0
    assert widths.hidden / 576 == pytest.approx(hidden, abs=1 / 16)
    shared = Prune(keep=0.8, share={"hidden": 0.5, "mlp": 0.5}).widths(SMOL)
    assert shared.hidden < 576 and shared.hidden % 9 == 0 and kept(shared) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("fields", [{"mlp": 0.001}, {"hidden": 0.005}, {"mlp": 0.01}, {"layers": 0.01}])
def test_next_to_nothing_is_nothing_at_any_multiple(fields):
    with pytest.raises(UserError, match="leaves nothing"):
        Prune(keep=None, **fields).widths(SMOL)


def test_no_smaller_multiple_is_proposed_than_one():
    with pytest.raises(UserError, match=r"(?s)cannot be reached.*nearest") as refused:
        Prune(keep=0.01).widths(SMOL)
    assert "multiple" not in refused.value.hint


def test_other_goals_stand_in_the_place_of_keep():
    config, _ = tiny("llama")
    for fields in ({"bytes": 350_000}, {"latency": 0.8}):
        assert Prune(keep=None, **fields).target().keep == Prune(**fields).target().keep
    assert Prune(keep=None, bytes=350_000, multiple=1).widths(config) == Prune(bytes=350_000, multiple=1).widths(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_solving_is_exact_for_every_family(family):
    config, _ = tiny(family)
    adapter = adapter_for(config)
    widths = solve(
        adapter.shape(config),
        PruneTarget(keep=0.6, multiple=8),
        lambda widths: adapter.non_embedding_parameters(config, widths),
    )
    adapter.check(config, widths)
    ratio = adapter.non_embedding_parameters(config, widths) / adapter.non_embedding_parameters(config)
    assert ratio == pytest.approx(0.6, abs=0.02)


SMALL = Shape(layers=3, hidden=4, heads=4, kv_heads=2, head_dim=8, mlp=4, vocab=10, tied=True)

PLAN = Plan(
    layers=(0, 2),
    mlp=((1, 3), (0, 1), (0, 1)),
    heads=((1,), (0,), (0,)),
    query_heads=((2, 3), (0, 1), (0, 1)),
    hidden=(1, 2),
)


def test_select_keeps_the_most_important_per_layer_and_breaks_ties_by_index():
    scores = Scores(
        layers=torch.tensor([0.5, 0.1, 0.9]),
        mlp=torch.tensor([[1.0, 4, 2, 3], [4, 3, 2, 1], [1, 1, 1, 1]]),
        heads=torch.tensor([[0.0, 1], [1, 0], [2, 2]]),
        hidden=torch.tensor([1.0, 3, 3, 3]),
    )
    plan = select(scores, SMALL, Widths(layers=2, mlp=2, heads=1, hidden=2, query_heads=2))
    assert plan == PLAN
    assert plan.widths == Widths(layers=2, mlp=2, heads=1, hidden=2, query_heads=2)
    assert select(scores, SMALL, SMALL.widths) == select(Scores(), SMALL, SMALL.widths) == Plan.full(SMALL)


def test_select_refuses_scores_that_do_not_fit():
    widths = replace(SMALL.widths, mlp=2)
    nan = torch.full((3, 4), float("nan"))
    for scores in (Scores(), Scores(mlp=torch.ones(3, 5)), Scores(mlp=torch.ones(2, 4)), Scores(mlp=nan)):
        with pytest.raises(ValueError, match="mlp needs finite scores"):
            select(scores, SMALL, widths)


def test_plan_round_trips_through_json():
    assert Plan.from_json(PLAN.to_json()) == PLAN
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json("[]")


@pytest.mark.parametrize(
    "broken",
    [
        {"layers": (2, 0)},
        {"layers": (0, 3)},
        {"layers": ()},
        {"hidden": (1, 1)},
        {"hidden": (-1, 2)},
        {"mlp": ((0,), (0, 1), (0,))},
        {"heads": ((0,), (0,))},
    ],
)
def test_broken_plans_are_refused(broken):
    with pytest.raises(ValueError):
        replace(PLAN, **broken)


def test_query_heads_are_chosen_within_the_groups_that_stay():
    shape = replace(SMALL, heads=6)  # three query heads in each of two groups
    score = torch.tensor([[1.0, 3, 2, 9, 9, 0], [0, 0, 1, 5, 4, 6], [1, 1, 1, 2, 2, 2]])
    widths = replace(shape.widths, query_heads=2)
    plan = select(Scores(query_heads=score), shape, widths)
    assert plan.query_heads == ((1, 2, 3, 4), (0, 2, 3, 5), (0, 1, 3, 4))
    one_group = select(
        Scores(query_heads=score, heads=torch.tensor([[0.0, 1], [1, 0], [1, 0]])), shape, replace(widths, heads=1)
    )
    assert one_group.query_heads == ((3, 4), (0, 2), (0, 1)) and one_group.widths == replace(widths, heads=1)
    with pytest.raises(ValueError, match="query heads need finite scores"):
        select(Scores(), shape, widths)


def test_a_group_that_keeps_no_query_head_is_no_plan():
    with pytest.raises(ValueError, match="3 query heads for 2"):
        replace(Plan.full(SMALL), query_heads=((0, 1, 2),) * 3)


def test_two_cuts_are_one_plan():
    shape = replace(SMALL, layers=4, mlp=8, hidden=6, heads=6, kv_heads=3)
    everything = Plan.full(shape)
    first = replace(
        everything,
        layers=(0, 2, 3),
        mlp=((0, 2, 4, 6), (0, 1, 2, 3), (1, 3, 5, 7), (4, 5, 6, 7)),
        heads=((0, 2), (0, 1), (1, 2), (0, 1)),
        query_heads=((0, 1, 4, 5), (0, 1, 2, 3), (2, 3, 4, 5), (0, 1, 2, 3)),
        hidden=(1, 2, 4, 5),
    )
    then = Plan(
        layers=(0, 2),
        mlp=((1, 3), (0, 1), (2, 3)),
        heads=((1,), (0,), (0,)),
        query_heads=((3,), (0,), (1,)),
        hidden=(0, 3),
    )
    both = compose(first, then)
    assert both.layers == (0, 3) and both.hidden == (1, 5)
    assert both.mlp[0] == (2, 6) and both.mlp[3] == (6, 7)
    assert both.heads[0] == (2,) and both.query_heads[0] == (5,)
    assert both.heads[3] == (0,) and both.query_heads[3] == (1,)
    assert both.widths == then.widths and len(both.mlp) == 4
    assert compose(everything, first).widths == first.widths
    assert compose(everything, first) == first
