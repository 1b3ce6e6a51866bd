"""Triton without a GPU: the numbers through its interpreter, the code through its ahead-of-time compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import compress_kernels as ck
import pytest

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs the real @triton.jit")


PACKAGES = str(Path(ck.__file__).parent.parent)
FLOAT, BYTES = "*fp32", "*u8"
LOGITS = {
    "kl_ptr": FLOAT,
    "weighted_ptr": FLOAT,
    "nll_student_ptr": FLOAT,
    "nll_teacher_ptr": FLOAT,
    "top1_ptr": BYTES,
    "vocab": "i32",
    "inverse_temperature": "fp32",
    **dict.fromkeys(("kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "beta", "alpha", "ce"), "fp32"),
}
OTHERS = ("REVERSE", "JS", "SKEW", "SKEW_REVERSE")


def compile_kernel(kernel, pointers: dict[str, str], constants: dict[str, object], capability: int, **options):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled, folder: Path) -> dict[str, int]:
    """Registers per thread and bytes spilled, as ptxas reports them for the kernel's PTX."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptx = compiled.asm["ptx"]
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    tool = get_ptxas(compiled.metadata.target.arch).path  # not one tool: it depends on the architecture
    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert target is not None
    command = [tool, "-v", f"-arch={target[1]}", source, "-o", folder / "kernel.cubin"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    registers = re.search(r"Used (\d+) registers", text)
    assert spills is not None and registers is not None, text
    return {"registers": int(registers[1]), "spill_stores": int(spills[1]), "spill_loads": int(spills[2])}


def kernels() -> dict[str, tuple[object, dict[str, str], dict[str, object], dict[str, object]]]:
    from compress_kernels import triton_blockwise, triton_grid, triton_linear, triton_rows, triton_sweep

    exact = {"enable_fp_fusion": False}
    quantize = {
        "weights_ptr": "*bf16",
        "given_ptr": FLOAT,
        "absmax_ptr": FLOAT,
        "codes_ptr": BYTES,
        "bounds_ptr": FLOAT,
        "order_ptr": BYTES,
        "count": "i32",
    }
    dequantize = {"codes_ptr": BYTES, "absmax_ptr": FLOAT, "values_ptr": FLOAT, "out_ptr": "*bf16", "count": "i32"}
    nest = {"residual_ptr": FLOAT, "lookup_ptr": BYTES, "codes_ptr": BYTES, "nested_ptr": FLOAT, "count": "i32"}
    restore = {
        "codes_ptr": BYTES,
        "nested_ptr": FLOAT,
        "table_ptr": FLOAT,
        "offset_ptr": FLOAT,
        "absmax_ptr": FLOAT,
        "count": "i32",
    }
    tensors = ("work", "anchor", "coupling", "pivot", "gain", "scale", "offset", "table", "bounds")
    sweep = {f"{name}_ptr": FLOAT for name in (*tensors, "levels", "aimed", "moved")}
    sweep |= {"rows": "i32", "columns": "i32", "low": "fp32", "high": "fp32"}
    sizes = {"ROWS": 8, "COLUMNS": 128}
    feedback = {"ANCHORED": False, "SHIFTED": False, "UNIFORM": False, "BOUNDS": 15} | sizes
    descent = {"ANCHORED": True, "SHIFTED": True, "UNIFORM": True, "BOUNDS": 0} | sizes
    logits = {"student_ptr": "*bf16", "teacher_ptr": "*bf16", "labels_ptr": "*i64"} | LOGITS
    flags = {
        "LABELS": True,
        "PLAIN": True,
        "GRADIENT": True,
        "TOP1": False,
        **dict.fromkeys(OTHERS, False),
        "TILE": 2048,
    }
    fused = {"num_warps": 8, "enable_fp_fusion": True}
    sizes = {"rows": "i32", "width": "i32", "outs": "i32"}
    rounding = {"x_ptr": "*bf16", "codes_ptr": "*i8", "absmax_ptr": FLOAT, "width": "i32"}
    int8 = {"x_ptr": "*bf16", "codes_ptr": "*i8", "absmax_ptr": FLOAT, "bias_ptr": "*bf16", "y_ptr": "*bf16"} | sizes
    tile = {"UNIT": 6.200124e-05, "BIAS": True, "ROWS": 32, "OUTS": 64, "STEP": 32}
    matrix = {"codes_ptr": BYTES, "scales_ptr": FLOAT, "offsets_ptr": FLOAT, "table_ptr": FLOAT}
    rows = matrix | {"ids_ptr": "*i64", "out_ptr": "*bf16", "width": "i32"}
    four_bit = {"x_ptr": "*bf16"} | matrix | {"bias_ptr": "*bf16", "y_ptr": "*bf16", "width": "i32", "outs": "i32"}
    few = {"BLOCK": 64, "OFFSETS": True, "BIAS": True, "OUTS": 8, "PAIRS": 128}
    blocks = {"latent_ptr": FLOAT, "scale_ptr": FLOAT, "table_ptr": FLOAT, "codes_ptr": BYTES}
    blocks |= {"width": "i32", "low": "fp32", "high": "fp32"}
    rounded = blocks | {"shift_ptr": FLOAT, "bounds_ptr": FLOAT, "weight_ptr": "*bf16", "count": "i32"}
    passed = {"gradient_ptr": "*bf16", "of_latent_ptr": FLOAT, "of_scale_ptr": FLOAT, "of_shift_ptr": FLOAT}
    passed |= blocks | {"blocks": "i32"}
    learned = {"SHIFTED": True, "UNIFORM": False, "BOUNDS": 15, "TILE": 1024}
    wide = exact | {"num_warps": 8}
    blockwise, linear = triton_blockwise, triton_linear
    return {
        "quantize": (blockwise.quantize_kernel, quantize, {"BLOCK": 64, "ROWS": 32, "GIVEN": False}, exact),
        "encode": (blockwise.quantize_kernel, quantize, {"BLOCK": 64, "ROWS": 32, "GIVEN": True}, exact),
        "dequantize": (blockwise.dequantize_kernel, dequantize, {"BLOCK": 64, "TILE": 1024}, exact),
        "quantize_absmax": (blockwise.quantize_absmax_kernel, nest, {"BLOCK": 256}, exact),
        "dequantize_absmax": (blockwise.dequantize_absmax_kernel, restore, {"BLOCK": 256, "TILE": 1024}, exact),
        "sweep_feedback": (triton_sweep.sweep_kernel, sweep, feedback, exact),
        "sweep_descent": (triton_sweep.sweep_kernel, sweep, descent, exact),
        "quantize_rows_int8": (linear.quantize_rows_kernel, rounding, {"TILE": 1024}, exact),
        "linear_int8": (linear.linear_int8_kernel, int8, tile, wide),
        "linear_int8_decode": (linear.linear_int8_kernel, int8, tile | {"ROWS": 16}, wide),
        "decode_rows_4bit": (
            linear.decode_rows_kernel,
            rows,
            {"BLOCK": 64, "OFFSETS": True, "CHOSEN": True, "TILE": 1024},
            exact,
        ),
        "linear_4bit": (linear.linear_4bit_kernel, four_bit, few, {}),
        "round_weight": (triton_grid.round_kernel, rounded, learned, exact),
        "round_weight_backward": (triton_grid.backward_kernel, passed, {"BLOCKS": 16, "TILE": 64}, exact),
        "round_weight_backward_rows": (triton_grid.backward_kernel, passed, {"BLOCKS": 1, "TILE": 1024}, exact),
        "divergence": (triton_rows.divergence_kernel, logits, flags, fused),
        "divergence_tempered": (triton_rows.divergence_kernel, logits, flags | {"PLAIN": False}, fused),
        **{
            f"divergence_{name.lower()}": (triton_rows.divergence_kernel, logits, flags | {name: True}, fused)
            for name in OTHERS
        },
        "divergence_all": (
            triton_rows.divergence_kernel,
            logits,
            flags | dict.fromkeys(OTHERS, True) | {"PLAIN": False},
            fused,
        ),
        "divergence_fp32": (
            triton_rows.divergence_kernel,
            logits | {"student_ptr": FLOAT, "teacher_ptr": FLOAT},
            flags | {"GRADIENT": False, "TOP1": True},
            fused,
        ),
    }


@pytest.mark.parametrize("capability", (80, 90))
@pytest.mark.parametrize("name", kernels())
def test_compiles_to_a_cubin_without_spills(name: str, capability: int, tmp_path: Path) -> None:
    kernel, pointers, constants, options = kernels()[name]
    compiled = compile_kernel(kernel, pointers, constants, capability, **options)
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    used = resources(compiled, tmp_path)
    print(f"{name} sm_{capability}: {used}")
    assert 0 < used["registers"] <= 128
    assert used["spill_stores"] == 0 and used["spill_loads"] == 0, f"{name} spills registers: {used}"


def test_compiled_arithmetic_keeps_the_bits(tmp_path: Path) -> None:
    """Every division is IEEE-rounded, nothing is fused, and bf16 is rounded to nearest."""
    table = kernels()
    for name in [name for name in table if not name.startswith(("divergence", "linear", "decode_rows"))]:
        kernel, pointers, constants, options = table[name]
        ptx = compile_kernel(kernel, pointers, constants, 90, **options).asm["ptx"]
        assert "fma.rn.f32" not in ptx, name
        assert not re.search(r"div\.(full|approx)", ptx), name
        assert ".ftz" not in ptx, name
        if name == "dequantize":
            assert "cvt.rn.bf16" in ptx
    for capability, instruction in ((80, "mma.sync.*s32.s8.s8.s32"), (90, "(wgmma|mma).*s8")):
        kernel, pointers, constants, options = table["linear_int8"]
        ptx = compile_kernel(kernel, pointers, constants, capability, **options).asm["ptx"]
        assert re.search(instruction, ptx), "the product does not run on the tensor cores' integers"
        assert "fma.rn.f32" not in ptx and not re.search(r"div\.(full|approx)", ptx)


def test_interpreted_numbers_equal_the_reference() -> None:
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "COMPRESS_KERNELS": "triton",
        "PYTHONPATH": os.pathsep.join([PACKAGES, os.environ.get("PYTHONPATH", "")]),
    }
    script = Path(__file__).with_name("interpret_triton.py")
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-3000:]
