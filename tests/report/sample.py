"""A report made by hand, with everything a run can say."""

from __future__ import annotations

import math
from typing import Any

PROJECTIONS = (
    "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj",
    "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
)  # fmt: skip
LAYERS = 5
STEPS = 450


def figures(kl: float, second: float, size: int = 100_000_000, params: int = 50_000_000) -> dict[str, Any]:
    """What is measured of one model."""
    return {
        "params": params,
        "params_non_embedding": params // 2,
        "bytes": size,
        "bytes_bf16": 2 * params,
        "ppl": 20 * math.exp(kl),
        "kl_to_teacher": kl,
        "top1_agreement": math.exp(-kl),
        "kl_stderr": kl / 20,
        "second_ppl": 10 * math.exp(second),
        "second_kl_to_teacher": second,
        "second_top1_agreement": math.exp(-second),
        "second_kl_stderr": second / 20,
    }


def stage(name: str, kind: str, metrics: dict[str, Any], details: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """One row of the chain."""
    return {
        "name": name,
        "kind": kind,
        "key": f"{name}-key",
        "cached": False,
        "seconds": 61.4,
        "peak_rss_bytes": 1_900_000_000,
        "params": metrics["params"],
        "bytes": metrics["bytes"],
        "metrics": metrics,
        "details": details,
        "fields": fields,
        "predicted": {"bytes": metrics["bytes"] + 1_000_000, "peak_rss_bytes": 2_090_000_000, "seconds": 30.7},
    }


def trained() -> dict[str, Any]:
    """Details of a stage that trains: every third step is on the curve."""
    curve = [
        {"loss": 0.3 + math.exp(-i / 15), "kl": 0.3, "ce": 0.0, "rate": 3e-4 * (1 - i / (STEPS / 3))}
        for i in range(STEPS // 3)
    ]
    return {"steps": STEPS, "train_tokens": 921_600, "tokens_per_second": 412.0, "resumed_at_step": 0, "curve": curve}


def answered(text: str, repetition: float) -> list[dict[str, Any]]:
    """What a model said to two prompts."""
    return [
        {"prompt": "Why is the sky blue?", "answer": text, "repetition": repetition},
        {"prompt": "Say nothing.", "answer": "", "repetition": 0.0},
    ]


def full() -> dict[str, Any]:
    """prune -> distill -> nf4 -> qlora, one artifact, tasks: a new value every time."""
    pruned = {
        "widths": {"layers": LAYERS, "mlp": 1280, "heads": 2, "hidden": 576},
        "widths_before": {"layers": LAYERS + 1, "mlp": 1536, "heads": 3, "hidden": 576},
        "kept_fraction": 0.8493,
        "dropped_layers": [4],
        "layer_influence": [0.45, 0.2, 0.15, 0.12, 0.06, 0.3],
        "plan": {"layers": [0, 1, 2, 3, 5], "heads": [[0, 1], [0, 2], [1, 2], [0, 1], [0, 1], [1, 2]]},
    }
    names = [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in PROJECTIONS]
    rounded = {
        "left_dense": ["model.layers.0.mlp.odd_proj"],
        "bits_per_weight": 4.13,
        "relative_error": {name: 0.08 + 0.0005 * index for index, name in enumerate(names)},
        "output_error": {name: 0.03 + 0.0004 * index for index, name in enumerate(names)},
        "output_error_rtn": {name: 0.06 + 0.0004 * index for index, name in enumerate(names)},
    }
    last = figures(0.22, 0.33, 59_000_000)
    baseline = figures(0.0, 0.0, 134_000_000, 67_000_000)
    report: dict[str, Any] = {
        "pipeline": "prune_distill",
        "command": "python -m compress +pipeline=prune_distill 'model.path=a b'",
        "seed": 7,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "device": "cpu",
        "threads": 2,
        "machine": "x86_64 Linux",
        "model": {
            "weights": "w3ights",
            "commit": "",
            "name": "org/Model-67M",
            "hub_id": "org/Model-67M",
            "bytes": 49_000_000,
            "note": "It came quantized.",
            "licence": "apache-2.0",
        },
        "second_text": {"name": "docs", "origin": "Python's docs", "fingerprint": "f00d"},
        "text": {"name": "speeches", "origin": "public-domain speeches", "fingerprint": "f1ngerpr1nt"},
        "protocol": "Held-out text, windows of 1024 tokens.",
        "baseline": baseline,
        "stages": [
            stage("prune", "prune", figures(0.6, 0.85), pruned, keep=0.85),
            stage("distill", "distill", figures(0.2, 0.3), trained(), train={"tokens": 921_600}),
            stage("quant", "nf4", figures(0.3, 0.45, 56_000_000), rounded, block=64),
            stage("recover", "qlora", last, trained(), rank=16),
        ],
        "won_back": [],
        "final": {**last, "bytes_of_bf16_original": 0.44, "bytes_of_source_file": 1.2, "ppl_ratio": 1.25},
        "left_out": {},
        "source_file": {
            "name": "the file it came in",
            "runtime": "llama_cpp",
            "bytes": 49_000_000,
            "load_seconds": 0.2,
            "speed": {"prefill_tokens_per_second": 900.0, "decode_tokens_per_second": 120.0},
            "metrics": figures(0.01, 0.02, 49_000_000),
        },
        "artifacts": [
            {
                "name": "hf",
                "format": "hf",
                "runtime": "transformers",
                "path": "/secret/place/artifacts/hf",
                "bytes": 59_000_000,
                "sha256": "5ha256",
                "merged": "none",
                "adapter": True,
                "verified": True,
                "mean_kl": 6.5e-5,
                "max_kl": 4e-4,
                "top1_agreement": 0.98,
                "first_difference": 57,
                "load_seconds": 3.7,
                "error": "",
                "loaded": True,
                "usage": "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
                "metrics": last,
                "seconds": 50.0,
                "cached": False,
                "predicted": {"seconds": 75.0},
            }
        ],
        "output": "/secret/place",
        "seconds": 2711.0,
    }
    speed = {"prefill_tokens_per_second": 270.0, "decode_tokens_per_second": 22.5}
    baseline |= {"speed": speed, "answers": answered("Because of Rayleigh scattering.", 0.0)}
    baseline["tasks"] = {"choices": {"acc": 0.42, "acc_stderr": 0.011, "samples": 1000.0}}
    report["final"] |= {"speed": {name: 2 * rate for name, rate in speed.items()}, "answers": answered("It is.", 0.5)}
    report["final"]["tasks"] = {"choices": {"acc": 0.4, "acc_stderr": 0.012, "samples": 1000.0}}
    from compress.report.won_back import won_back

    report["won_back"] = won_back(baseline, report["stages"])
    return report


def bare() -> dict[str, Any]:
    """Nothing that a run may leave out: one stage that says nothing of itself, no speed, no answers, no artifact."""
    report = full()
    report["stages"] = [stage("quant", "int8", figures(0.01, 0.02), {})]
    report["won_back"], report["artifacts"], report["source_file"] = [], [], None
    report["model"] |= {"bytes": None, "note": "", "licence": None}
    for side in ("baseline", "final"):
        report[side] = {k: v for k, v in report[side].items() if k not in ("speed", "tasks")} | {"answers": []}
    report["final"]["bytes_of_source_file"] = None
    return report
