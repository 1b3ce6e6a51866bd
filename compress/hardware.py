"""What this machine is: its processor, and the memory a process may have of it."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

HALF = {"bfloat16": {"avx512_bf16", "bf16"}, "float16": {"avx512_fp16"}}
"""Half precisions, and what processors that multiply in them call it (x86, ARM)."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container, or a job of a cluster, reads its own limit (cgroup versions 2 and 1)."""

QUOTAS = (
    ("/sys/fs/cgroup/cpu.max", ""),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""And its share of time: microseconds of a period, in one file or in two."""


@cache
def processor() -> tuple[str, frozenset[str]]:
    """Its name and flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), _flags_by_torch()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = found.get("flags", found.get("Features", ""))  # x86, ARM
    return found.get("model name", platform.machine()), frozenset(flags.split())


def _flags_by_torch() -> frozenset[str]:
    """Where the system does not list them (Windows, macOS): the one that models are computed by."""
    import torch

    return frozenset({"avx512_bf16"} if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() else ())


def name_of(device: str | None) -> str:
    """The GPU's name for "cuda", else the processor's."""
    if device != "cuda":
        return processor()[0]
    import torch

    return torch.cuda.get_device_name()


def native(dtype: str) -> bool:
    """Whether this processor multiplies numbers of type `dtype`, such as "bfloat16".

    A half precision that it does not have is emulated by torch, number by number: on a processor with AVX2 alone, 0.8
    GFLOP/s were measured where fp32 has 47.
    """
    return dtype not in HALF or not HALF[dtype].isdisjoint(processor()[1])


@cache
def gpu_has_bf16(index: int | None = None) -> bool:
    """Whether that GPU (by default the current one) multiplies in bf16: from Ampere on. Before, torch emulates it."""
    import torch

    return torch.cuda.get_device_capability(index) >= (8, 0)


def take_gpu(number: int) -> None:
    """Leave this process one of the GPUs it sees, in turn by `number`: the next process has another.

    Does nothing where there are fewer than two, or where the process already computes on one.
    """
    import torch

    count = torch.cuda.device_count()
    if count < 2 or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number % count]


def native_bf16() -> bool:
    """Whether models compute in bf16 on this processor, else in fp32."""
    return native("bfloat16")


def cores_of_quota() -> int | None:
    """As many as fill the share of time that a container has (`docker --cpus`, limits of Kubernetes), rounded up."""
    for quota, period in QUOTAS:
        try:
            share = Path(quota).read_text(encoding="utf-8").split()
            share += Path(period).read_text(encoding="utf-8").split() if period else []
            return max(1, math.ceil(int(share[0]) / int(share[1]))) if int(share[0]) > 0 else None
        except (OSError, ValueError, IndexError, ZeroDivisionError):  # not there, or "max"
            continue
    return None


def fast_cores() -> int | None:
    """Those of Apple's processors that are not the efficient ones, for which evenly divided work would wait."""
    if platform.system() != "Darwin":
        return None
    import ctypes

    count, size = ctypes.c_int32(), ctypes.c_size_t(4)
    name = b"hw.perflevel0.physicalcpu"
    failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(count), ctypes.byref(size), None, 0)
    return None if failed or count.value < 1 else count.value


def memory_bytes() -> int:
    """All memory there is for us: the machine's, or a container's limit."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for file in LIMITS:
        try:
            limits.append(int(Path(file).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limit for limit in limits if limit > 0)
