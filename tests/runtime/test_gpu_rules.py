"""What is decided by the GPU there is, decided without one: its answers are put in the place of torch's."""

from __future__ import annotations

import os
from types import SimpleNamespace

import compress_kernels as ck
import numpy as np
import pytest
import torch
from compress_kernels import backend

from compress.command import compose
from compress.config import share_of_gpus
from compress.export.reload import Transformers
from compress.hardware import gpu_has_bf16, processor, take_gpu
from compress.keys import machine_inputs, stage_inputs
from compress.multirun import _share_gpus
from compress.prune.stage import Prune
from compress.runtime.loading import slow_half
from compress.train.fit import lightning_precision
from compress.train.settings import Precision, Training
from compress.train.student import place_for

CUDA = torch.device("cuda:0")


@pytest.fixture(params=[(7, 5), (8, 0), (9, 0)], ids=str)
def capability(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: request.param)
    gpu_has_bf16.cache_clear()
    yield request.param
    gpu_has_bf16.cache_clear()


def test_bf16_is_not_computed_in_where_a_gpu_emulates_it(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    old = capability < (8, 0)
    assert slow_half(torch.bfloat16, CUDA) == old
    assert not slow_half(torch.float16, CUDA)
    assert not slow_half(torch.float32, CUDA)
    assert lightning_precision(Precision.auto, CUDA) == ("32-true" if old else "bf16-mixed")
    assert lightning_precision(Precision.bf16, CUDA) == "bf16-mixed"
    # what was computed in another type is another result
    assert ("half" in machine_inputs("cuda", 2)) == old


def test_triton_that_cannot_start_is_told_once_and_the_reference_computes(monkeypatch):
    monkeypatch.delenv("COMPRESS_KERNELS", raising=False)
    backend._cuda_choice.cache_clear()
    # a driver is asked for, and here is none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="Triton cannot start .* using the slower plain torch reference"):
        assert ck.backend_name(CUDA) == "reference"
    assert ck.backend_name(CUDA) == "reference"
    backend._cuda_choice.cache_clear()


def test_models_that_several_processes_train_are_not_loaded_onto_the_first_gpu():
    context = SimpleNamespace(fabric=SimpleNamespace(device=CUDA))
    assert place_for(Training(tokens=8), context) == CUDA
    assert place_for(Training(tokens=8, devices=2, batch=2), context) == torch.device("cpu")


def test_a_latency_belongs_to_the_gpu_it_was_timed_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    stage = Prune(keep=None, latency=0.8)
    reads = dict.fromkeys(stage.reads, "")
    assert stage_inputs(stage, {}, reads, {"device": "cuda"})["processor"] == "a GPU"
    assert stage_inputs(stage, {}, reads, {"device": "cpu"})["processor"] == processor()[0]


class OnAnotherDevice(torch.nn.Module):
    """Answers zeros, and wants its ids where it is."""

    device = torch.device("meta")

    def forward(self, ids, **options):
        assert ids.device == self.device and ids.dtype == torch.int64
        return SimpleNamespace(logits=torch.zeros(*ids.shape, 8, dtype=torch.bfloat16), past_key_values=None)


def test_a_model_that_transformers_put_on_a_gpu_is_asked_there():
    runtime = object.__new__(Transformers)
    runtime.torch, runtime.model = torch, OnAnotherDevice()
    ids = np.arange(5, dtype=np.int64)
    logits = runtime.logits(ids)
    assert logits.shape == (5, 8) and logits.dtype == np.float32
    assert runtime.step(runtime.prefill(ids)) == 0


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(0, 2, 0), (4, 2, 2), (2, 2, 1), (1, 2, 0.5), (1, 3, 0.3333), (2, 3, 0.5), (8, 3, 2)]
)
def test_runs_at_a_time_share_gpus_evenly(gpus, workers, share, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert share_of_gpus(workers) == share


@pytest.mark.parametrize(
    ("given", "gpus", "number", "left"),
    [
        (None, 2, 0, "0"),
        (None, 2, 3, "1"),
        ("4,6", 2, 1, "6"),
        ("4,6", 2, 2, "4"),
        ("5", 1, 3, "5"),
        (None, 0, 1, None),
    ],
)
def test_runs_beside_each_other_take_gpus_in_turn(given, gpus, number, left, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given or "")  # set, so that it is put back
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    take_gpu(number)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == left


def test_a_process_that_computes_on_a_gpu_stays_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    take_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    ("launcher", "override", "given"),
    [
        ("joblib_launcher.joblib_launcher.JoblibLauncher", "seed=0", "1"),
        ("submitit_launcher.submitit_launcher.LocalLauncher", "seed=0", "1"),
        ("submitit_launcher.submitit_launcher.SlurmLauncher", "seed=0", "0,1"),
        ("ray_launcher.ray_launcher.RayLauncher", "seed=0", "0,1"),
        ("joblib_launcher.joblib_launcher.JoblibLauncher", "stages.recover=null", "1"),
        ("joblib_launcher.joblib_launcher.JoblibLauncher", "train.devices=2", "0,1"),
        ("joblib_launcher.joblib_launcher.JoblibLauncher", "stages.distill.train.devices=2", "0,1"),
    ],
)
def test_gpus_are_shared_out_where_the_launcher_does_not(launcher, override, given, monkeypatch):
    package, _, name = f"hydra_plugins.hydra_{launcher}".rpartition(".")
    assert hasattr(pytest.importorskip(package, reason="pip install -e '.[sweeps]'"), name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    _share_gpus(compose(["+pipeline=prune_distill", override]), f"{package}.{name}", 3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given
