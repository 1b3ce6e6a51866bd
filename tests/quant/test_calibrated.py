"""Calibration layer by layer: the targets are the least-squares ones, and the model is nearer to the original."""

from __future__ import annotations

import pytest
import torch

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.errors import UserError
from compress.grids import grid_named
from compress.layerwise import Layers, batches
from compress.quant.calibrated import calibrate, sharing_inputs
from compress.quant.inputs import RoundedInputs
from compress.quant.solve import Calibration, Collected, Solved, damped, solve, target
from compress.quant.stage import Activations, Algorithm, Scaling
from tests.models import FAMILIES, tiny
from tests.quant.problems import gram_of, layer

WINDOWS = torch.randint(3, 320, (12, 32), generator=torch.Generator().manual_seed(0))


def run(name: str, grid: str, settings: Calibration, windows: torch.Tensor = WINDOWS):
    """(quantized model, original, solved layers)."""
    (_, student), (_, teacher) = tiny(name), tiny(name)
    found: dict[str, Solved] = {}
    grids = dict.fromkeys(linear_paths(student.config), grid_named(grid))
    calibrate(student, teacher, grids, windows, settings, found.__setitem__, lambda _: None)
    return student, teacher, found


@torch.no_grad()
def divergence(student, teacher, windows: torch.Tensor = WINDOWS) -> float:
    p, q = (model(windows).logits.log_softmax(-1) for model in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", [*FAMILIES, "llama-biases", "llama-no_gqa", "gpt_neox-serial"])
def test_feedback_beats_rounding_on_every_family(name: str) -> None:
    fresh = torch.randint(3, 320, (8, 32), generator=torch.Generator().manual_seed(1))
    rounded, teacher, plain = run(name, "int3_g64", Calibration(algorithm=Algorithm.rtn, absorb=0.0))
    solved, _, found = run(name, "int3_g64", Calibration())
    assert list(found) == list(plain) and set(found) == set(linear_paths(teacher.config))
    assert divergence(solved, teacher, fresh) < 0.8 * divergence(rounded, teacher, fresh)
    for path, layer_ in found.items():
        assert layer_.error < layer_.error_rtn, path


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_model_holds_what_was_found(name: str) -> None:
    from compress.grids import value_of
    from compress.quant.calibrated import weight_of

    student, _, found = run(name, "q4_0", Calibration())
    for path, solved in found.items():
        value = value_of(solved.levels, solved.scales)
        weight = weight_of(student.get_submodule(path), adapter_for(student.config).modules.conv1d)
        assert torch.equal(weight, value)
        encoded = grid_named("q4_0").pack(solved.levels, solved.scales, torch.float32)
        assert torch.equal(grid_named("q4_0").decode(encoded), value)


ATTENTION = {
    "gpt2": [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]],
    "gpt_neox": [["attention.query_key_value"], ["attention.dense"], ["mlp.dense_h_to_4h"], ["mlp.dense_4h_to_h"]],
}
DECODER = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]


@pytest.mark.parametrize("name", [*FAMILIES, "gpt_neox-serial"])
@torch.no_grad()
def test_layers_that_share_an_input_are_found(name: str) -> None:
    _, model = tiny(name)
    modules = adapter_for(model.config).modules
    layers = Layers.of(model, WINDOWS[:2])
    groups = sharing_inputs(layers, 2, layers.embedded, list(modules.linears(2)))
    prefix = f"{modules.layer(2)}."
    short = [[path.removeprefix(prefix) for path in group] for group in groups]
    assert sorted(short) == sorted(ATTENTION.get(name.partition("-")[0], DECODER))
    assert not any(module._forward_pre_hooks for module in model.modules())


def collected(y: torch.Tensor, x: torch.Tensor) -> Collected:
    return Collected(y.T @ y / len(y), (x - y).T @ y / len(y), y.T @ y / len(y), [])


@pytest.mark.parametrize("missing", [False, True])
def test_target_is_the_least_squares_solution(missing: bool) -> None:
    """W' that gives the original's outputs (and what the stream lacks) on the quantized stream's inputs, by lstsq."""
    dense, y = layer(16, 24, tokens=500)
    generator = torch.Generator().manual_seed(3)
    x = y + 0.3 * torch.randn(y.shape, generator=generator)
    weight = dense + 0.1 * torch.randn(dense.shape, generator=generator)
    drift = torch.randn(500, 16, generator=generator) if missing else torch.zeros(500, 16)
    settings = Calibration(absorb=1.0, ridge=0.01)
    d = drift.T @ y / len(y) if missing else None
    found = target(weight, dense, collected(y, x), d, settings)
    # damping is a pull towards W: rows sqrt(damping * mean) * I that want W itself
    ridge = (0.01 * gram_of(y).diagonal().mean() * len(y)).sqrt() * torch.eye(24)
    wanted = torch.cat([x @ dense.T + drift, ridge @ weight.T]).double()
    expected = torch.linalg.lstsq(torch.cat([y, ridge]).double(), wanted).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    half = target(weight, dense, collected(y, x), d, Calibration(absorb=0.5, ridge=0.01))
    torch.testing.assert_close(half, (found + weight) / 2, rtol=1e-3, atol=1e-5)
    assert torch.equal(target(weight, dense, collected(y, x), d, Calibration(absorb=0.0)), weight)


def test_without_quantization_before_it_the_target_is_the_weight() -> None:
    weight, x = layer(16, 24)
    torch.testing.assert_close(target(weight, weight, collected(x, x), None, Calibration(absorb=1.0)), weight)


@pytest.mark.parametrize("grid", ["int4_g32", "nf4", "q4_0", "int8"])
def test_each_algorithm_is_better_than_the_one_before(grid: str) -> None:
    weight, x = layer(32, 64)
    errors = [
        solve(weight, weight, gram_of(x), grid_named(grid), Calibration(algorithm=algorithm)).error
        for algorithm in (Algorithm.rtn, Algorithm.search, Algorithm.gptq)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_the_error_is_that_of_the_output() -> None:
    from compress.grids import value_of

    weight, x = layer(32, 64)
    found = solve(weight, weight, gram_of(x), grid_named("q4_0"), Calibration())
    value = value_of(found.levels, found.scales)
    expected = float((x @ (value - weight).T).square().sum() / (x @ weight.T).square().sum())
    assert abs(found.error / expected - 1) < 1e-3


@torch.no_grad()
def test_int8_inputs_change_what_the_layers_read() -> None:
    from compress.grids.int8 import fake_quantize

    _, model = tiny("llama")
    paths = linear_paths(model.config)
    seen = {}
    layer_ = model.get_submodule(paths[3])
    plain = model(WINDOWS).logits
    with RoundedInputs(Activations.int8_token).on(model, paths):
        handle = layer_.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
        rounded = model(WINDOWS).logits
        handle.remove()
    torch.testing.assert_close(fake_quantize(seen["x"]), seen["x"], rtol=1e-5, atol=1e-6)
    assert all(len(row.unique()) <= 255 for row in seen["x"].flatten(0, 1)[:4])
    assert not torch.equal(plain, rounded)
    assert torch.equal(model(WINDOWS).logits, plain)


def test_calibration_sees_rounded_inputs() -> None:
    found = [run("llama", "int8", Calibration(activations=kind, absorb=0.0))[2] for kind in Activations]
    path = linear_paths(tiny("llama")[0])[-1]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(found[one][path].levels, found[other][path].levels)


@pytest.mark.parametrize("scaling", [Scaling.awq, Scaling.smooth])
@pytest.mark.parametrize("name", ["llama-biases", "gpt2", "gpt_neox"])
def test_scaling_helps_or_is_left_alone(scaling: Scaling, name: str) -> None:
    """Everything else exact, the folded model is the original: on INT8 it stays near it."""
    student, teacher, _ = run(name, "int8", Calibration(algorithm=Algorithm.rtn, scaling=scaling, absorb=0.0))
    plain, _, _ = run(name, "int8", Calibration(algorithm=Algorithm.rtn, absorb=0.0))
    assert divergence(student, teacher) < 1.5 * divergence(plain, teacher) + 1e-6
    norms = [n for n, p in student.named_parameters() if p.dim() == 1 and not torch.equal(p, teacher.get_parameter(n))]
    assert norms


@pytest.mark.parametrize("windows", [WINDOWS[:1, :8], WINDOWS[:1].clone().fill_(7)])
def test_little_text_and_one_word_over_and_over(windows: torch.Tensor) -> None:
    """Fewer tokens than columns: the Gram matrices are singular, the result is finite and still a model like it."""
    student, teacher, found = run("llama", "int4_g32", Calibration(), windows)
    assert all(bool(s.levels.isfinite().all()) and s.error < 1 for s in found.values())
    assert divergence(student, teacher) < 1.0


def test_dead_inputs_and_silence() -> None:
    for gram in (torch.zeros(64, 64), torch.diag(torch.tensor([1.0] + 63 * [0.0]))):
        weight, _ = layer(16, 64)
        found = solve(weight, weight, gram, grid_named("int4_g32"), Calibration())
        assert bool(found.levels.isfinite().all()) and found.error >= 0
        moved = target(weight, weight * 1.1, Collected(gram, 0.1 * gram, gram, []), None, Calibration())
        assert bool(moved.isfinite().all())
        assert float(damped(gram, 0.01).diagonal().min()) > 0


def test_overflow_is_refused_in_words() -> None:
    (_, student), (_, teacher) = tiny("llama"), tiny("llama")
    with torch.no_grad():
        student.get_submodule("model.layers.1.mlp.up_proj").weight.fill_(3e38)
    grids = dict.fromkeys(linear_paths(student.config), grid_named("int8"))
    with pytest.raises(UserError, match="not finite on the calibration text"):
        calibrate(student, teacher, grids, WINDOWS, Calibration(), lambda *_: None, lambda _: None)


@pytest.mark.parametrize("shape", [(3, 256), (64, 256), (200, 256), (128, 512), (40, 700), (10, 3000)])
def test_the_original_follows_whole_batches(shape: tuple[int, int]) -> None:
    from compress.quant.calibrated import DRIFT_TOKENS, followed_windows

    windows = torch.zeros(shape)
    followed = followed_windows(windows)
    sizes = [len(part) for part in batches(windows)]
    assert followed == len(windows) or followed in [sum(sizes[:n]) for n in range(len(sizes))]
    assert followed == len(windows) or followed * shape[1] >= DRIFT_TOKENS > (followed - sizes[0]) * shape[1]


def test_much_text_is_followed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the original on a part of the text only, the quantized model is about as near to it."""
    from compress.quant import calibrated

    windows = torch.randint(3, 320, (96, 32), generator=torch.Generator().manual_seed(5))
    near = divergence(*run("llama", "int4_g32", Calibration(), windows)[:2])
    monkeypatch.setattr(calibrated, "DRIFT_TOKENS", 1024)
    part = divergence(*run("llama", "int4_g32", Calibration(), windows)[:2])
    rounded = divergence(*run("llama", "int4_g32", Calibration(algorithm=Algorithm.rtn, absorb=0.0), windows)[:2])
    assert part != near
    assert part < 1.2 * near < rounded


@torch.no_grad()
def test_projections_that_write_to_the_stream_are_told_its_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """D of the second layer's attention output is E[d y^T], from the two models as they are in the end."""
    from compress.layerwise import watching
    from compress.quant import calibrated

    told: list[torch.Tensor | None] = []

    def noting(weight, dense, collected, missing, settings):
        told.append(missing)
        return target(weight, dense, collected, missing, settings)

    monkeypatch.setattr(calibrated, "target", noting)
    student, teacher, found = run("llama", "int3_g64", Calibration(first_token=1.0))
    order = list(found)
    path = "model.layers.1.self_attn.o_proj"
    drift = []
    for model in (teacher, student):
        layer_ = model.get_submodule("model.layers.0")
        with watching(layer_) as seen, watching(student.get_submodule(path)) as read:
            model(WINDOWS)
        out = seen[0][1]
        drift.append(out[0] if isinstance(out, tuple) else out)
    (y, _), d = read[0], drift[0] - drift[1]
    expected = d.flatten(0, 1).T @ y.flatten(0, 1) / d[..., 0].numel()
    missing = told[order.index(path)]
    assert missing is not None and float(missing.norm()) > 0
    torch.testing.assert_close(missing, expected, rtol=1e-3, atol=1e-5)
    assert told[order.index("model.layers.1.self_attn.q_proj")] is None


def test_without_drift_nothing_is_absorbed() -> None:
    """Scales folded in, the original seeing only a part of the text: W' is W up to what fp32 leaves."""
    from compress.quant.calibrated import _collect

    _, model = tiny("llama")
    path = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        layers = Layers.of(model, torch.randint(3, 320, (64, 32), generator=torch.Generator().manual_seed(0)))
        y = model.get_submodule("model.layers.0.input_layernorm")(layers.embedded)
        scale = 1 + torch.rand(y.shape[-1], generator=torch.Generator().manual_seed(0))
        model.get_submodule("model.layers.0.input_layernorm").weight.div_(scale)
        seen = [batches(y)[0]]
        assert len(batches(y)) > 1
        settings = Calibration(absorb=1.0, ridge=1e-4)
        found = _collect(layers, 0, layers.embedded, [path], seen, RoundedInputs(), settings)
        dense = model.get_submodule(path).weight
        moved = target(dense * scale, dense, found, None, settings)
    torch.testing.assert_close(moved, dense * scale, rtol=1e-3, atol=1e-4)


def test_plain_rounding_is_measured_against_the_plain_weight() -> None:
    weight, x = layer(16, 64)
    found = solve(weight, 1.1 * weight, gram_of(x), grid_named("int4_g32"), Calibration(algorithm=Algorithm.rtn))
    assert found.error == pytest.approx(found.error_rtn) and torch.equal(found.goal, weight)


def test_more_text_than_is_enough_is_left_out() -> None:
    from compress.quant.stage import CalibrationSettings

    assert CalibrationSettings().enough(576) == 16384 == CalibrationSettings(tokens=65536).enough(576)
    assert CalibrationSettings(tokens=65536).enough(1536) == 24576
    assert CalibrationSettings(tokens=65536, per_column=0).enough(64) == 65536
    assert CalibrationSettings(tokens=300).enough(8192) == 300
    with pytest.raises(UserError, match="per_column"):
        CalibrationSettings(per_column=-1)
