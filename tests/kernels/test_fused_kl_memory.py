"""What fused_kl holds at its peak, in a process of its own: other tests must not share the measurement."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import compress_kernels as ck
import pytest
import torch

MEMORY = """
import ctypes, threading
from pathlib import Path
import torch
import compress_kernels as ck

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

TERMS = ck.Divergences(1, 1, 1, 1, 1)

def loss(tokens, hidden, head, dtype, form):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "autocast"):
        if form == "sparse":
            ids = torch.arange(64).repeat(tokens, 1)
            targets = ck.SparseTargets(ids, log_mass=torch.full((tokens, 65), 1 / 65).log())
            return ck.sparse_kl(hidden[:tokens], head, targets, terms=TERMS).total
        return ck.fused_kl(hidden[:tokens], head, hidden[:tokens].detach() * 1.1, head.detach(), terms=TERMS).total

def measure(dtype, form):
    torch.manual_seed(0)
    kind = torch.float32 if dtype == "autocast" else getattr(torch, dtype)
    hidden, head = ((torch.randn(rows, 576) * 0.3).to(kind).requires_grad_() for rows in (2048, 49152))
    loss(2, hidden, head, dtype, form).backward()
    hidden.grad = head.grad = None
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, stop = anonymous(), [0], threading.Event()
    def watch():
        while not stop.wait(0.0005):
            peak[0] = max(peak[0], anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    loss(2048, hidden, head, dtype, form).backward()
    stop.set()
    watcher.join()
    returned = sum(x.numel() * x.element_size() for x in (hidden, head))
    print(dtype + '/' + form, (peak[0] - before - returned) / 2**20)

for case in CASES:
    measure(*case.split("/"))
"""


HALF = "bfloat16/fused", "float32/fused", "autocast/fused", "bfloat16/sparse"
WHOLE = "float32/fused", "float32/sparse"
"""Where torch would emulate products in bf16, for minutes."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_under_64_megabytes() -> None:
    """Two fp32 [2048, 49152] tensors would be 768 MB; the work above inputs and gradients has to fit in 64.

    With all divergences at once: those of one alone hold no more."""
    path = os.pathsep.join([str(Path(ck.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    cases = HALF if torch.cpu._is_avx512_bf16_supported() else WHOLE
    command = [sys.executable, "-c", f"CASES = {cases}\n{MEMORY}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    print(done.stdout)
    for line in done.stdout.splitlines():
        kind, used = line.split()
        assert float(used) < 64, f"{kind} needs {used} MiB"
