"""Run under TRITON_INTERPRET=1 by test_triton.py: the Triton kernels' numbers against the reference, on a CPU."""

from __future__ import annotations

import compress_kernels as ck
import torch
from compress_kernels import reference, triton_backend
from compress_kernels.codes import code_table
from compress_kernels.rows import RowRequest
from sweeps import SHAPES, TABLES, latent_weight, request
from torch import Tensor

DIVERGENCES = (
    ck.Divergences(0.7),
    *(ck.Divergences(*(float(i == j) for j in range(5)), beta=0.3, alpha=0.2) for i in range(1, 5)),
    ck.Divergences(0.5, 0.4, 0.3, 0.2, 0.1),
)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def check_blockwise() -> None:
    generator = torch.Generator().manual_seed(0)
    for kind in ("nf4", "fp4"):
        for block in (32, 64, 4096):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for count in (1, 63, 65, 2049, 5003) if dtype == torch.float32 else (65, 5003):
                    w = torch.randn(count, generator=generator).mul(0.02).to(dtype)
                    if count == 5003:
                        w[7], w[300], w[64:128] = float("nan"), float("inf"), 0.0
                    check_tensor(w, block, kind)


def check_bounds() -> None:
    """Weights on a bound times a scale, where a product with the reciprocal and a quotient part ways."""
    generator = torch.Generator().manual_seed(0)
    for kind in ("nf4", "fp4"):
        bounds = code_table(kind, torch.device("cpu")).bounds
        blocks = []
        for scale in torch.rand(40, generator=generator):
            near = torch.cat([scale.view(1), bounds * scale, torch.nextafter(bounds * scale, torch.ones(()))])
            blocks.append(torch.cat([near, near, near[:2]]))
        assert {len(block) for block in blocks} == {64}
        check_tensor(torch.cat(blocks), 64, kind)
        for block in blocks[:8]:
            check_tensor(block[:31], 64, kind)  # one incomplete block, which divides


def check_tensor(w: Tensor, block: int, kind: str) -> None:
    packed, absmax = reference.quantize_4bit(w, block, kind)
    actual = triton_backend.quantize_4bit(w, block, kind)
    same(actual[0], packed)
    same(actual[1], absmax)
    scales = absmax * 1.01
    scales[0] *= -1
    same(triton_backend.encode_4bit(w, scales, block, kind), reference.encode_4bit(w, scales, block, kind))
    for out in (torch.float32, torch.float16):
        expected = reference.dequantize_4bit(packed, scales, w.numel(), block, kind, out)
        same(triton_backend.dequantize_4bit(packed, scales, w.numel(), block, kind, out), expected)
    # The interpreter cuts fp32 to bf16 where a GPU rounds (test_triton.py looks for cvt.rn in the compiled kernel).
    exact = reference.dequantize_4bit(packed, scales, w.numel(), block, kind, torch.float32)
    cut = (exact.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    normal = exact.abs() > 1.2e-38
    actual_cut = triton_backend.dequantize_4bit(packed, scales, w.numel(), block, kind, torch.bfloat16)
    same(actual_cut[normal], cut[normal])
    residual = absmax - absmax.mean()
    nested = reference.quantize_absmax(residual)
    for got, wanted in zip(triton_backend.quantize_absmax(residual), nested, strict=True):
        same(got, wanted)
    same(triton_backend.dequantize_absmax(*nested, absmax.mean()), reference.dequantize_absmax(*nested, absmax.mean()))


def check_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for vocab in (1, 7, 1000, 5001):
            for temperature in (1.0, 2.5):
                student = (torch.randn(4, vocab, generator=generator) * 4).to(dtype)
                teacher = student + (torch.randn(4, vocab, generator=generator) * 0.3).to(dtype)
                labels = torch.randint(0, vocab, (4,), generator=generator)
                labels[2] = -100
                chosen_terms = [*((labels, terms) for terms in DIVERGENCES), (None, DIVERGENCES[-1])]
                all_terms = dtype == torch.float32 and temperature != 1.0
                for chosen, terms in chosen_terms if all_terms else chosen_terms[-2:]:
                    options = (teacher, chosen, temperature, terms, 0.3, True, True)
                    requests = [RowRequest(student.clone(), *options) for _ in range(2)]
                    actual = triton_backend.divergence_rows(requests[0])
                    expected = reference.divergence_rows(requests[1])
                    torch.testing.assert_close(actual.kl, expected.kl, rtol=1e-4, atol=2e-6)
                    torch.testing.assert_close(actual.weighted, expected.weighted, rtol=1e-4, atol=2e-6)
                    torch.testing.assert_close(actual.nll_student, expected.nll_student)
                    torch.testing.assert_close(actual.nll_teacher, expected.nll_teacher)
                    assert torch.equal(actual.top1_equal, expected.top1_equal)
                    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
                    torch.testing.assert_close(requests[0].student, requests[1].student, rtol=tolerance, atol=1e-6)


def check_sweep() -> None:
    for rows, columns in ((1, 1), (3, 17), (33, 40)):
        for table in TABLES:
            for anchored, shifted in ((True, True), (True, False), (False, False))[: 3 if rows < 33 else 1]:
                asked = request(rows, columns, table, anchored, shifted)
                got, wanted = triton_backend.sweep_columns(asked), reference.sweep_columns(asked)
                for name in ("levels", "aimed", "moved"):
                    same(getattr(got, name), getattr(wanted, name))


def check_latent_weights() -> None:
    for shape in SHAPES:
        for table in TABLES:
            for shifted in (True, False):
                weight = latent_weight(*shape, table, shifted)
                (got, codes), (wanted, places) = (
                    side.round_weight(weight, torch.float32) for side in (triton_backend, reference)
                )
                same(got, wanted)
                same(codes, places)
                back, expected = (
                    side.round_weight_backward(weight, codes, weight.latent) for side in (triton_backend, reference)
                )
                same(back.latent, expected.latent)
                torch.testing.assert_close(back.scale, expected.scale, rtol=1e-5, atol=1e-3)
                torch.testing.assert_close(back.shift, expected.shift, rtol=1e-5, atol=1e-3)


def check_int8() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        for rows, width, outs in ((1, 1, 1), (3, 70, 9), (20, 130, 70)):
            x = torch.randn(rows, width, generator=generator)
            x[0, 0] = 30.0
            if rows == 3:
                x[0], x[1, 3] = 0.0, float("nan")
            x = x.to(dtype)
            codes = torch.randint(-127, 128, (outs, width), generator=generator, dtype=torch.int8)
            absmax = torch.rand(outs, generator=generator)
            for got, wanted in zip(triton_backend.quantize_rows_int8(x), reference.quantize_rows_int8(x), strict=True):
                same(got, wanted)
            for bias in (None, torch.randn(outs, generator=generator)):
                expected = reference.linear_int8(x, codes, absmax, bias)
                same(triton_backend.linear_int8(x, codes, absmax, bias), expected)


def check_four_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    for width, outs, block in ((64, 9, 32), (96, 5, 64), (30, 7, 32)):
        blocks = -(-width * outs // block)
        codes = torch.randint(0, 256, (outs, width // 2), generator=generator, dtype=torch.uint8)
        scales = (torch.randn(blocks, generator=generator) * 0.1).half()
        for offsets in (None, torch.randn(blocks, generator=generator)):
            parts = (codes, scales, ck.NF4_CODE, block, offsets)
            for ids in (None, torch.tensor([outs - 1, 0, 2])):
                expected = reference.decode_rows_4bit(*parts, ids, torch.float32)
                same(triton_backend.decode_rows_4bit(*parts, ids, torch.float32), expected)
            for rows in (2, 6):
                x = torch.randn(1, rows, width, generator=generator)
                for bias in (None, torch.randn(outs, generator=generator)):
                    expected = reference.linear_4bit(x, *parts, bias)
                    actual = triton_backend.linear_4bit(x, *parts, bias)
                    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def check_public_functions() -> None:
    assert ck.backend_name("cpu") == "triton"
    w = torch.randn(333, generator=torch.Generator().manual_seed(1))
    q = ck.quantize_4bit(w)
    same(q.codes, reference.quantize_4bit(w, 64, "nf4")[0])
    assert ck.dequantize_4bit(q, (333,), torch.float32).shape == (333,)
    hidden, head = torch.randn(6, 8, requires_grad=True), torch.randn(50, 8)
    loss = ck.fused_kl(hidden, head, hidden.detach() + 0.1, head)
    loss.total.backward()
    expected_input = hidden.detach().clone().requires_grad_()
    valid = torch.ones(6, dtype=torch.bool)
    teacher = (hidden.detach() + 0.1) @ head.t()
    expected = reference.kl_loss(
        expected_input @ head.t(), teacher, valid, None, temperature=1.0, terms=ck.Divergences(), ce=0.0
    )
    expected.backward()
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hidden.grad, expected_input.grad, rtol=1e-3, atol=1e-6)


if __name__ == "__main__":
    check_blockwise()
    check_bounds()
    check_rows()
    check_sweep()
    check_latent_weights()
    check_int8()
    check_four_bit()
    check_public_functions()
    print("equal")
