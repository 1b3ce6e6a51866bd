"""Every shipped YAML composes into objects, and what is impossible is refused before a byte is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.command import compose
from compress.config import STAGES, Config, build, pipelines, presets
from compress.errors import UserError
from compress.quant.qat import QAT
from compress.quant.stage import INT8, NF4

CONF = Path(__file__).parents[2] / "conf"
NEEDED = {"data=text": ["data.path=x"], "data=hub": ["data.id=x"], "model=hf": ["model.path=x"]}


def built(*overrides: str) -> Config:
    return build(compose(list(overrides)))


def option(file: Path) -> str:
    return f"{file.parent.name}={file.stem}"


def _bases(file: Path) -> set[str]:
    """The option itself, or the one it is made from."""
    first = file.read_text().partition("defaults: [")[2].partition(",")[0].removesuffix("_schema")
    return {first}


PLUGINS = {
    f"/hydra/{kind}: {name}": f"hydra_plugins.hydra_{plugin}"
    for kind, name, plugin in (
        ("launcher", "joblib", "joblib_launcher"),
        ("launcher", "submitit", "submitit_launcher"),
        ("launcher", "ray", "ray_launcher"),
        ("sweeper", "optuna", "optuna_sweeper"),
    )
}

YAMLS = sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: str(file.relative_to(CONF)))
def test_every_yaml_composes(file: Path) -> None:
    group = file.parent.name
    if file.parent == CONF:
        config = built("+pipeline=nf4")
    elif group in ("pipeline",):
        config = built(f"+{option(file)}")
        assert config.name == file.stem and bool(config.stages) is (file.stem != "export")
    elif group in ("sweep", "launch"):
        for wanted, module in PLUGINS.items():
            if wanted in file.read_text():
                pytest.importorskip(module, reason=f"{module} is not installed (pip install -e '.[sweeps]')")
        config = built("+pipeline=prune_distill", f"+{option(file)}")
    elif group in ("prune", "distill", "quant", "recover"):
        before = {"qlora": ["+quant@stages.first=nf4"], "compensate": ["+prune@stages.first=activation"]}
        before["compensate_long"] = before["compensate"]
        config = built(*before.get(file.stem, []), f"+{group}@stages.it={file.stem}")
        schemas = {f"{path}_schema".partition("/")[2]: kind for path, kind in STAGES.items()}
        base = next(kind for name, kind in schemas.items() if name.removesuffix("_schema") in _bases(file))
        assert type(config.stages["it"]) is base
    elif group == "export":
        config = built("+pipeline=nf4", f"export@export.hf={file.stem}")
    else:
        config = built("+pipeline=nf4", option(file), *NEEDED.get(option(file), []))
    assert isinstance(config, Config)


def test_every_stage_has_its_yaml() -> None:
    for path in STAGES:
        assert (presets() / f"{path}.yaml").is_file()


@pytest.mark.parametrize("name", pipelines())
def test_presets_set_no_fields(name: str) -> None:
    """A field in a preset's body would win over a swapped group."""
    lines = (CONF / "pipeline" / f"{name}.yaml").read_text().splitlines()
    keys = {line.split(":")[0] for line in lines if line and line[0] not in " #"}
    of_the_run = {"needs_stages"} if name == "export" else set()  # of no group, like the name
    assert keys == {"defaults", "name", *of_the_run}


def test_sweep_value() -> None:
    assert built("+pipeline=prune_distill", "stages.prune.keep=0.7").stages["prune"].keep == 0.7


def test_drop() -> None:
    assert list(built("+pipeline=prune_distill", "~stages.quant", "~stages.recover").stages) == [
        "prune",
        "compensate",
        "distill",
    ]


def test_swap() -> None:
    stages = built("+pipeline=prune_distill", "quant@stages.quant=int8", "~stages.recover").stages
    assert list(stages) == ["prune", "compensate", "distill", "quant"] and isinstance(stages["quant"], INT8)


def test_append() -> None:
    stages = built("+pipeline=prune_only", "+quant@stages.again=nf4").stages
    assert list(stages) == ["prune", "compensate", "again"] and isinstance(stages["again"], NF4)


def test_swapped_stage_takes_overrides() -> None:
    stages = built("+pipeline=nf4", "quant@stages.quant=qat_int8", "stages.quant.train.rate=0.5").stages
    assert isinstance(stages["quant"], QAT) and stages["quant"].train.rate == 0.5


def test_top_budget_reaches_every_training_stage_and_one_can_differ() -> None:
    stages = built("+pipeline=prune_distill", "train.tokens=777", "stages.recover.train.tokens=99").stages
    assert (stages["distill"].train.tokens, stages["recover"].train.tokens) == (777, 99)


def test_top_training_settings_reach_every_training_stage() -> None:
    """What is asked of training at the top holds in all stages that train, but for their own rates and schedules."""
    given = [
        "train=adamw_8bit",
        "train.validate_every=500",
        "train.keep=best",
        "train.loggers=[csv]",
        "train.devices=2",
    ]
    more = [
        "train.strategy=fsdp",
        "train.activation_checkpointing=true",
        "train.patience=2",
        "train.validate_tokens=99",
        "train.clip=0.5",
        "train.warmup=0.2",
        "train.final_rate=0.1",
    ]
    stages = built("+pipeline=prune_distill", *given, *more).stages
    stages |= {"qat": built("+pipeline=qat_nf4", *given, *more).stages["quant"]}
    top = built("+pipeline=distill_only", *given, *more).train
    own = {"rate", "schedule"}
    for name in ("distill", "recover", "qat"):
        found, expected = vars(stages[name].train), vars(top)
        assert {k: v for k, v in found.items() if k not in own} == {k: v for k, v in expected.items() if k not in own}
    assert top.optimizer["_target_"] == "bitsandbytes.optim.AdamW8bit"


def test_budget_scales() -> None:
    tokens = [
        built("+pipeline=distill_only", f"budget={b}").train.tokens for b in ("smoke", "quick", "standard", "full")
    ]
    assert tokens == sorted(tokens) and len(set(tokens)) == 4


REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown pipeline": (["+pipeline=prune_distil"], "prune_distill"),
    "forgotten plus": (["pipeline=nf4"], "+pipeline"),
    "misspelt group": (["pipelin=nf4"], "+pipeline"),
    "no stages": (["seed=1"], "+pipeline=prune_distill"),
    "unknown field": (["+pipeline=nf4", "stages.quant.blok=64"], "blok"),
    "wrong type": (["+pipeline=nf4", "stages.quant.block=many"], "many"),
    "wrong enum": (["+pipeline=nf4", "stages.quant.code=nf5"], "nf4, fp4"),
    "unknown option": (["+pipeline=nf4", "data=texts"], "sotu"),
    "block not on the grid": (["+pipeline=nf4", "stages.quant.block=48"], "64"),
    "keep above one": (["+pipeline=prune_only", "stages.prune.keep=1.5"], "0.85"),
    "keep zero": (["+pipeline=prune_only", "stages.prune.keep=0"], "0.85"),
    "keep negative": (["+pipeline=prune_only", "stages.prune.keep=-0.2"], "0.85"),
    "temperature zero": (["+pipeline=distill_only", "stages.distill.loss.temperature=0"], "temperature"),
    "no loss at all": (["+pipeline=distill_only", "stages.distill.loss.kl=0"], "loss"),
    "negative weight": (["+pipeline=distill_only", "stages.distill.loss.js=-1"], "loss.js=-1"),
    "no mixture": (["+pipeline=distill_only", "stages.distill.loss.skew_alpha=1"], "loss.skew_alpha"),
    "negative rate": (["+pipeline=distill_only", "stages.distill.train.rate=-1"], "rate"),
    "processes that share no batch": (["+pipeline=distill_only", "train.devices=3"], "train.batch=3"),
    "a strategy for one process": (["+pipeline=distill_only", "train.strategy=fsdp"], "train.devices=2"),
    "the best of no validations": (["+pipeline=qlora", "train.keep=best"], "train.validate_every="),
    "patience without validations": (["+pipeline=qlora", "train.patience=2"], "train.validate_every="),
    "an unknown logger": (["+pipeline=distill_only", "train.loggers=[wandb]"], "tensorboard"),
    "a rate for all": (["+pipeline=prune_distill", "train.rate=1e-4"], "stages.distill.train.rate="),
    "a schedule for all": (["+pipeline=qat_nf4", "train.schedule=linear"], "stages.quant.train.schedule=linear"),
    "no rate for what does not train": (["+pipeline=nf4", "train.rate=1e-4"], "No stage"),
    "an infinite rate": (["+pipeline=distill_only", "stages.distill.train.rate=inf"], "train.rate=inf"),
    "an infinite temperature": (["+pipeline=distill_only", "stages.distill.loss.temperature=inf"], "temperature=inf"),
    "a weight that is no number": (["+pipeline=distill_only", "stages.distill.loss.hidden=nan"], "loss.hidden=nan"),
    "no tokens": (["+pipeline=distill_only", "train.tokens=0"], "tokens"),
    "quantize twice": (["+pipeline=nf4", "+quant@stages.again=int8"], "'quant' before it took that away"),
    "prune after quantization": (["+pipeline=nf4", "+prune@stages.late=activation"], "dense"),
    "distill after quantization": (["+pipeline=nf4", "+distill@stages.late=logits"], "dense"),
    "compensation of an uncut model": (["+prune@stages.c=compensate"], "pruned"),
    "adapters without a 4-bit base": (["+pipeline=prune_only", "+recover@stages.r=qlora"], "nf4"),
    "adapters on int8": (["+pipeline=int8", "+recover@stages.r=qlora"], "nf4"),
    "not a stage": (["+stages.x=3"], "not a stage"),
    "plug-in that is not installed": (["+pipeline=nf4", "hydra/launcher=nothing"], "[sweeps]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words(case: str) -> None:
    overrides, said = REFUSED[case]
    with pytest.raises(UserError) as caught:
        built(*overrides)
    assert said in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.optim.lr_scheduler.StepLR",
        "torch.optim.Nothing",
        "subprocess.Popen",
        "torch.optim.adamw.Tensor",
    ],
)
def test_config_cannot_name_any_callable(target: str) -> None:
    import torch

    from compress.train.optimizer import make_optimizer

    with pytest.raises(UserError):
        make_optimizer({"_target_": target}, [torch.nn.Parameter(torch.zeros(1))], 0.1)


@pytest.mark.parametrize("target", ["torch.optim.AdamW", "torch.optim.SGD", "bitsandbytes.optim.AdamW8bit"])
def test_optimizers_by_name(target: str) -> None:
    import torch

    from compress.train.optimizer import make_optimizer

    made: Any = make_optimizer({"_target_": target}, [torch.nn.Parameter(torch.zeros(1))], 0.1)
    assert type(made).__name__ == target.rpartition(".")[2] and made.param_groups[0]["lr"] == 0.1
