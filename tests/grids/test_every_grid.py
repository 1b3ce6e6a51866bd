"""What every grid must be able to do, whatever it stores."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from compress import grid_names
from compress.errors import UserError
from compress.grids import GGUF, GRIDS, Grid, grid_named, level_of, value_of

NAMES = sorted(GRIDS)
KINDS = {"q4_0": "Q4_0", "q5_0": "Q5_0", "q5_1": "Q5_1", "q8_0": "Q8_0"}


def weight(rows: int = 64, columns: int = 384, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 1, rows)[:, None]


@pytest.mark.parametrize("name", NAMES)
def test_encoding_stores_levels_and_scales(name: str) -> None:
    """decode(encode(w)) is scale * level + offset of what unpack finds, and packing that again gives the same bytes."""
    grid = grid_named(name)
    assert grid.name == name
    encoded = grid.encode(weight())
    levels, scales = grid.unpack(encoded)
    torch.testing.assert_close(value_of(levels, scales), grid.decode(encoded), rtol=1e-6, atol=1e-7)
    assert set(levels.unique().tolist()) <= set(grid.levels.tolist())
    again = grid.pack(levels, scales, encoded.dtype)
    assert torch.equal(grid.decode(again), grid.decode(encoded))
    if not name.startswith("fp4"):  # whose zero has two codes
        assert {k: v.tolist() for k, v in again.parts.items()} == {k: v.tolist() for k, v in encoded.parts.items()}


@pytest.mark.parametrize("name", NAMES)
def test_no_level_is_nearer(name: str) -> None:
    grid = grid_named(name)
    w = weight(32, 256)
    scales = grid.start(w)
    error = (value_of(level_of(w, scales, grid), scales) - w).abs()
    for level in grid.levels:
        other = (value_of(torch.full_like(w, float(level)), scales) - w).abs()
        assert bool((error <= other * (1 + 1e-5) + 1e-7).all())


@pytest.mark.parametrize("name", NAMES)
def test_starting_scales_round_as_the_format_does(name: str) -> None:
    """Nearly: the formats choose codes by unrounded scales, which moves a weight on a border now and then."""
    grid = grid_named(name)
    w = torch.randn(64, 384, generator=torch.Generator().manual_seed(0))  # alike in size, for double quantization
    scales = grid.start(w)
    ours, theirs = level_of(w, scales, grid), grid.unpack(grid.encode(w))[0]
    assert float((ours != theirs).float().mean()) < 0.05
    # and none by more than one level
    position = {float(level): i for i, level in enumerate(grid.levels.unique())}
    rank = torch.tensor([position[v] for v in (ours[ours != theirs]).tolist()])
    other = torch.tensor([position[v] for v in (theirs[ours != theirs]).tolist()])
    assert bool(((rank - other).abs() <= 1).all())


@pytest.mark.parametrize("name", NAMES)
def test_settled_scales_stay(name: str) -> None:
    grid = grid_named(name)
    scales = grid.start(weight())
    packed = grid.pack(level_of(weight(), scales, grid), scales, torch.float32)
    found = grid.unpack(packed)[1]
    assert torch.allclose(found.scale, scales.scale, rtol=1e-6)
    if scales.offset is not None:
        assert found.offset is not None and torch.allclose(found.offset, scales.offset, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero(name: str) -> None:
    grid = grid_named(name)
    w = weight()
    w[:4] = 0
    decoded = grid.decode(grid.encode(w))
    assert bool(decoded.isfinite().all())
    # one offset for all scales: double quantization has no exact zero scale, but level 0 times it is
    assert torch.equal(decoded[:4], torch.zeros(4, w.shape[1]))
    assert torch.equal(value_of(level_of(w, grid.start(w), grid), grid.start(w))[:4], torch.zeros(4, w.shape[1]))


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_what_is_stored(name: str) -> None:
    grid = grid_named(name)
    w = torch.randn(256, 3840 if "int3" in name else 4096)
    tolerance = 0.02 if name == "int8" or name.endswith("asym") else 1e-3
    # zero points lie as int8 here, and are packed on export
    zero = 8 / grid.block - (3 if "int3" in name else 4) / grid.block if name.endswith("asym") else 0
    assert abs(8 * grid.encode(w).bytes() / w.numel() - grid.bits() - zero) < tolerance


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("seed", range(3))
def test_the_bytes_of_llama_cpp(kind: str, seed: int) -> None:
    """Against gguf.quants, which llama.cpp's authors keep bit-identical with ggml."""
    grid: Grid = GGUF(kind)  # type: ignore[arg-type]
    w = weight(seed=seed)
    w[0, :32] = 0
    w[1, 0], w[1, 5] = -w[1, :32].abs().max() * 2, w[1, :32].abs().max() * 2  # equal magnitudes: the first counts
    quantization = gguf.GGMLQuantizationType[KINDS[kind]]
    expected = gguf.quants.quantize(w.numpy(), quantization)
    encoded = grid.encode(w)
    assert np.array_equal(encoded.parts["blocks"].numpy(), expected)
    np.testing.assert_array_equal(grid.decode(encoded).numpy(), gguf.quants.dequantize(expected, quantization))


def test_unknown_name_lists_the_grids() -> None:
    with pytest.raises(UserError, match="no grid 'int5'") as raised:
        grid_named("int5")
    assert "q4_0" in str(raised.value.hint)


def test_names_are_known_without_the_grids() -> None:
    assert tuple(GRIDS) == grid_names.NAMES
