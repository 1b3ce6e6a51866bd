"""ONNX graphs against onnxruntime in a fresh process: whole texts, and a text read and written with the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.export.onnx.settings import FILE, OnnxExport, OnnxType
from compress.runtime.loading import load_model
from compress.stage import DENSE
from tests.models import save

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason="pip install 'compress[runtimes]'")

from compress.export.fresh import FreshProcess  # noqa: E402
from compress.export.verify import verify  # noqa: E402

IDS = torch.arange(3, 51)[None]
PRUNED = {"num_key_value_heads": 1, "num_attention_heads": 2, "intermediate_size": 96, "num_hidden_layers": 2}


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> object:
    return load_model(checkpoint.folder, dtype=dtype)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("family", "over"), [("llama-tied", {"num_hidden_layers": 2}), ("llama", PRUNED), ("gpt2", {"n_layer": 2})]
)
def test_onnxruntime_says_what_the_model_says(family: str, over: dict[str, int], kind: str, tmp_path: Path) -> None:
    import onnxruntime

    save(family, tmp_path / "model", **over)
    checkpoint, settings = Checkpoint(tmp_path / "model", frozenset({DENSE})), OnnxExport(type=OnnxType(kind))
    settings.check(checkpoint)
    settings.write(checkpoint, tmp_path / "artifact")
    expectation = settings.expect(checkpoint, IDS, load)
    with FreshProcess("onnxruntime", tmp_path / "artifact", 1, 64) as process:
        found = verify(process, expectation, IDS)
        assert found.verified, found.error
        assert found.mean_kl < 1e-8 if kind == "fp32" else found.emulation["mean_kl"] < 1e-4
        whole = process.logits(IDS[0])
    # the cache: half of the text, then one token after the other
    session = onnxruntime.InferenceSession(str(tmp_path / "artifact" / FILE))
    past = {
        given.name: np.zeros((1, given.shape[1], 0, given.shape[3]), np.float32)
        for given in session.get_inputs()
        if given.name.startswith("past.")
    }
    rows, at = [], 0
    for piece in (IDS[:, :24], *IDS[:, 24:].split(1, 1)):
        end = at + piece.shape[1]
        out = session.run(
            None,
            {
                "input_ids": piece.numpy(),
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(at, end, dtype=np.int64)[None],
                **past,
            },
        )
        rows.append(torch.from_numpy(out[0][0]))
        past, at = dict(zip(past, out[1:], strict=True)), end
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-3, atol=1e-3 if kind == "fp32" else 2e-1)
    assert b"/site-packages/" not in (tmp_path / "artifact" / FILE).read_bytes()
