"""Mixed precision: what it predicts, what it chooses, and what lies on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import compress
from compress.arch.linears import linear_paths
from compress.errors import UserError
from compress.grids import grid_named
from compress.quant.calibrated import weight_of
from compress.quant.mixed import Mixed, MixedQAT
from compress.quant.sensitivity import error_of, loss_of, losses_of_outer, slopes
from compress.quant.stage import Scaling
from tests.models import save, tiny
from tests.pipelines.helpers import tiny_run
from tests.quant.problems import gram_of

WINDOWS = torch.randint(3, 320, (24, 32), generator=torch.Generator().manual_seed(0))
SINKS = 4


@torch.no_grad()
def divergence(student, teacher) -> float:
    p, q = (model(WINDOWS).logits[:, SINKS:].double().log_softmax(-1) for model in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


def gentle(name: str):
    """A tiny model whose weights are small, so that errors stay small too and the second order is all there is."""
    _, model = tiny(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.6)
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_predicts_what_each_tensor_costs(name: str) -> None:
    """Against the KL with that tensor alone on the grid: nearly (errors and slopes are taken to be
    independent), and in the right order, which is what an allocation needs."""
    model, reference = gentle(name), gentle(name)
    paths = linear_paths(model.config)
    found = slopes(model, WINDOWS.repeat(4, 1), paths, 0, lambda _: None)
    grid, conv1d = grid_named("q5_0"), name == "gpt2"
    predicted, measured = [], []
    for path in paths[: 2 * len(paths) // 4]:
        seen: list[torch.Tensor] = []
        module = model.get_submodule(path)
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(WINDOWS)
        handle.remove()
        gram = gram_of(seen[0][:, SINKS:].flatten(0, 1))
        weight = weight_of(module, conv1d)
        error = error_of(weight, grid, None)
        predicted.append(loss_of(error, gram, found.modules[path]))
        before = module.weight.clone()
        module.weight.copy_((weight + error).t() if conv1d else weight + error)
        measured.append(divergence(model, reference))
        module.weight.copy_(before)
    ratio = torch.tensor(predicted).log() - torch.tensor(measured).log()
    assert float(ratio.abs().median()) < 0.5, ratio
    order = torch.corrcoef(torch.stack([torch.tensor(predicted).log(), torch.tensor(measured).log()]))[0, 1]
    assert float(order) > 0.8, order


def test_of_a_window_only_the_first_positions_are_kept() -> None:
    """A part of a tensor keeps the whole of it: inputs and gradients of every layer, for all windows, in fp32."""
    model = gentle("llama")
    found = slopes(model, WINDOWS, linear_paths(model.config), 0, lambda _: None)
    for path, slope in found.modules.items():
        for kept in (part for pair in slope.first for part in pair):
            assert kept.untyped_storage().nbytes() == kept.nbytes, path


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_predicts_what_the_embedding_costs(name: str) -> None:
    model, reference = gentle(name), gentle(name)
    found = slopes(model, WINDOWS.repeat(4, 1), [], 0, lambda _: None)
    grid = grid_named("q5_0")
    predicted = losses_of_outer(model, "model.embed_tokens", found, {"q5_0": grid})["q5_0"]
    weight = model.model.embed_tokens.weight
    weight.add_(error_of(weight, grid, None))
    assert 0.5 < predicted / divergence(model, reference) < 2.0


def run(model: Path, text: Path, output: Path, *more: str, pipeline: str = "mixed") -> dict:
    quick = ["evaluate.speed=false", "evaluate.prompts=[]", "stages.quant.calibration.tokens=2048"]
    return compress.run(tiny_run(pipeline, model, text, output, *quick, "stages.quant.calibration.length=64", *more))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    save("llama-tied", folder, hidden_size=128, head_dim=32, intermediate_size=256)
    return folder


@pytest.mark.parametrize("budget", ["bits=5.2", "megabytes=0.46"])
def test_the_budget_is_kept_on_disk(budget: str, wide: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    report = run(wide, text_file, tmp_path / "out", f"stages.quant.{budget}")
    details = report["stages"][-1]["details"]
    folder = Path(report["artifacts"][0]["path"])
    assert report["artifacts"][0]["verified"], report["artifacts"][0]["error"]
    kind, value = budget.split("=")
    size = (folder / "model.safetensors").stat().st_size
    if kind == "megabytes":
        assert 0.93 * float(value) * 1e6 < size <= float(value) * 1e6
    else:
        assert float(value) - 0.15 < details["bits_per_weight"] <= float(value)
    chosen = {path: entry["grid"] for path, entry in details["chosen"].items()}
    assert chosen == details["grids"] and "model.embed_tokens" in chosen and len(chosen) == 4 * 7 + 1
    assert len(set(chosen.values())) > 1
    on_disk = json.loads((folder / "config.json").read_text())["quantization_config"]["grids"]
    assert on_disk == chosen
    for path, entry in details["chosen"].items():
        assert entry["loss"] == details["sensitivity"][path][entry["grid"]]
        if "q4_0" in details["sensitivity"][path]:
            assert details["sensitivity"][path]["q8_0"] < details["sensitivity"][path]["q4_0"]


def test_mixed_predicts_less_than_any_uniform_choice(wide: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    """And at the bytes of uniform Q5_0 it loses less in fact."""
    mixed = run(wide, text_file, tmp_path / "a", "stages.quant.bits=5.5")
    uniform = run(wide, text_file, tmp_path / "b", "stages.quant.bits=5.5", "stages.quant.candidates=[q5_0]")
    kl = [report["stages"][-1]["metrics"]["kl_to_teacher"] for report in (mixed, uniform)]
    predicted = [report["stages"][-1]["details"]["predicted_kl"] for report in (mixed, uniform)]
    assert predicted[0] < predicted[1] and kl[0] < kl[1], (predicted, kl)


def test_training_keeps_to_the_chosen_grids_and_loses_less(
    wide: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    calibrated = run(wide, text_file, tmp_path / "a", "stages.quant.bits=4.9")
    training = ["train.tokens=32000", "train.length=64", "train.batch=8", "train.precision=fp32"]
    training += ["stages.quant.train.rate=1e-2"]
    trained = run(wide, text_file, tmp_path / "b", "stages.quant.bits=4.9", *training, pipeline="qat_mixed")
    before, after = (report["stages"][-1] for report in (calibrated, trained))
    assert before["details"]["chosen"] == after["details"]["chosen"]
    assert after["details"]["grids"] == before["details"]["grids"] and after["bytes"] == before["bytes"]
    assert after["metrics"]["kl_to_teacher"] < 0.9 * before["metrics"]["kl_to_teacher"]
    assert all(artifact["verified"] for artifact in trained["artifacts"])


def test_an_allocation_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed afterwards finds it in the stage's scratch folder."""
    from compress.quant import mixing

    asked = []

    def measured(*_: object) -> dict:
        asked.append(1)
        return {"chosen": {"a": {"grid": "q5_0", "loss": 0.1 + 0.2}}, "sensitivity": {}, "predicted_kl": 1 / 3}

    monkeypatch.setattr(mixing, "_allocation", measured)
    context = SimpleNamespace(scratch=tmp_path)
    found = [mixing.allocated(None, MixedQAT(), context) for _ in range(2)]
    assert found[0] == found[1] and found[0][0] == {"a": grid_named("q5_0")} and len(asked) == 1


@pytest.mark.parametrize("budget", ["bits=3", "megabytes=0.2"])
def test_an_impossible_budget_is_refused_with_the_least_possible(
    budget: str, wide: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(UserError, match="at least") as raised:
        run(wide, text_file, tmp_path / "out", f"stages.quant.{budget}")
    assert raised.value.hint is not None
    kind = budget.split("=", maxsplit=1)[0]
    least = raised.value.hint.split(f"{kind}=")[1].split(" ")[0]
    # what the message names is enough
    report = run(wide, text_file, tmp_path / "again", f"stages.quant.{kind}={least}")
    chosen = list(report["stages"][-1]["details"]["grids"].values())
    assert chosen.count("q4_0") >= (len(chosen) if kind == "bits" else len(chosen) // 2)


def test_settings_are_checked() -> None:
    for wrong in ({"bits": 0.0}, {"megabytes": -1.0}, {"candidates": []}, {"scaling": Scaling.awq}):
        with pytest.raises(UserError):
            Mixed(**wrong)
    for kind in (Mixed, MixedQAT):
        with pytest.raises(UserError, match="no grid 'q3_k'"):
            kind(candidates=["q4_0", "q3_k"]).check(None)
        with pytest.raises(UserError, match="no grid 'q9'"):
            kind(embedding="q9").check(None)
    for wrong in ({"bits": 0.0}, {"rank": 0}, {"norm_rate": -1.0}):
        with pytest.raises(UserError):
            MixedQAT(**wrong)
