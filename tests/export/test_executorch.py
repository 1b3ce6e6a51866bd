"""ExecuTorch programs against their runtime in a fresh process: whole texts, and texts written with the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.command import run_overrides
from compress.errors import UserError
from compress.export import probe
from compress.export.executorch.settings import FILE, ExecutorchExport, ExecutorchType
from compress.export.manifest import write_manifest
from compress.runtime.loading import load_model
from compress.stage import DENSE
from tests.models import save

pytest.importorskip("executorch", reason="pip install 'compress[executorch]'")
pytest.importorskip("torchao", reason="pip install 'compress[executorch]'")

from compress.export.fresh import FreshProcess, ReloadError
from compress.export.reload import ExecuTorch
from compress.export.verify import verify

IDS = torch.arange(3, 51)[None]
MODELS: dict[str, tuple[str, str, dict[str, object]]] = {
    "llama tied": ("fp32", "llama-tied", {"num_hidden_layers": 2}),
    "width-pruned": (
        "8da4w",
        "llama",
        {"num_key_value_heads": 1, "num_attention_heads": 2, "intermediate_size": 80, "num_hidden_layers": 2},
    ),
    "depth-pruned": ("8da4w", "llama-tied", {"num_hidden_layers": 1}),
    # one layer with a window of five tokens
    "qwen2": ("fp32", "qwen2", {"num_hidden_layers": 2, "max_window_layers": 1}),
    "gpt2": ("8da4w", "gpt2", {"n_layer": 1}),
}


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> object:
    return load_model(checkpoint.folder, dtype=dtype)


@pytest.mark.parametrize(
    "name",
    [
        "llama tied",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("width-pruned", "depth-pruned", "qwen2", "gpt2")),
    ],
)
def test_the_runtime_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    kind, family, overrides = MODELS[name]
    save(family, tmp_path / "model", **overrides)
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    settings, folder = ExecutorchExport(type=ExecutorchType(kind), context=64), tmp_path / "artifact"
    settings.check(checkpoint)
    settings.write(checkpoint, folder)
    with FreshProcess("executorch", folder, 1, 64) as process:
        assert min(process.speed(IDS[0, :32], 4).values()) > 0
        found = verify(process, settings.expect(checkpoint, IDS, load), IDS)
    assert found.verified, found
    if kind == "fp32":
        assert found.emulation is None and found.mean_kl < 1e-8
    else:
        assert found.emulation is not None
        assert found.emulation["mean_kl"] < 1e-3 and found.emulation["mean_kl"] < found.mean_kl / 3
    # the cache: half of the text, then one token after the other
    runtime = ExecuTorch(str(folder), 1, 64)
    best = runtime.logits(IDS[0].numpy()).argmax(-1)
    assert runtime.prefill(IDS[0, :24].numpy()) == best[23]
    assert [runtime.step(int(token)) for token in IDS[0, 24:]] == list(best[24:])
    with pytest.raises(ReloadError, match="64 tokens"):
        FreshProcess("executorch", folder, 1, 65)
    if name == "depth-pruned":
        verify_names_what_is_damaged(folder, settings, checkpoint)


def verify_names_what_is_damaged(folder: Path, settings: ExecutorchExport, checkpoint: Checkpoint) -> None:
    expectation = settings.expect(checkpoint, IDS, load)
    probe.keep(folder, IDS, expectation, {"format": "executorch", "runtime": "executorch"})
    write_manifest(folder)
    ask = ["mode=verify", f"artifact={folder}", "threads=1"]
    told = run_overrides(ask)
    assert told["status"] == 0 and "executorch answers as it did" in told["message"]
    content = bytearray((folder / FILE).read_bytes())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-100], flipped):
        (folder / FILE).write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=f"written: {FILE}"):
            run_overrides(ask)


def test_codes_are_written_unchanged_or_refused() -> None:
    from compress.export.executorch.write import _on_integers
    from compress.grids import Integer, grid_named

    weight = torch.randn(64, 96)
    for name in ("int4_g32", "int8"):
        grid = grid_named(name)
        own = grid.encode(weight)
        found = _on_integers("w", own, grid, False, 64)
        torch.testing.assert_close(found.decoded, grid.decode(own))
        assert found.bits == (4 if name == "int4_g32" else 8)
    # rows of 96 are no whole groups of 64: a row of INT8
    assert _on_integers("w", weight, None, False, 64).bits == 8
    assert _on_integers("w", weight, None, False, 32).scale.shape == (64, 3)
    for refused in ("nf4", "q4_0", "int4_g32_asym"):
        grid = grid_named(refused)
        with pytest.raises(UserError, match=grid.name):
            _on_integers("w", grid.encode(weight), grid, False, 32)
    assert Integer(4, 32).symmetric


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="48"):
        ExecutorchExport(group=48)
    with pytest.raises(UserError, match="context"):
        ExecutorchExport(context=1)


def test_what_exact_computations_differ_by_is_said_and_excuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.export.executorch import write

    save("llama", tmp_path / "model", num_hidden_layers=2)
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    kind = ExecutorchType("8da4w")
    _, emulated, apart = write.expected(checkpoint, ExecutorchExport(type=kind), IDS, load)
    assert emulated is not None and 0 < apart < 5e-3
    plain = ExecutorchExport(type=kind).expect(checkpoint, IDS, load)
    assert plain.tolerance == 1e-2 and "apart" not in plain.scheme
    monkeypatch.setattr(write, "last_bits_moved", lambda x: torch.where(x.abs() < 1, 0.0, x))
    _, _, apart = write.expected(checkpoint, ExecutorchExport(type=kind), IDS, load)
    told = ExecutorchExport(type=kind).expect(checkpoint, IDS, load)
    assert apart > 1e-2 and f"{apart:.1e} apart" in told.scheme
    assert told.tolerance == 1e-2
    exact = ExecutorchExport().expect(checkpoint, IDS, load)
    assert exact.tolerance == 1e-4 and exact.emulated is None
