"""What may follow a quantizing stage."""

from __future__ import annotations

import pytest

from compress.errors import UserError
from compress.quant.mixed import Mixed
from compress.quant.stage import INT8, NF4, OnGrid, PostTraining
from compress.recover.stage import QLoRA
from compress.stage import check_chain


def test_adapters_follow_an_nf4_stage_in_the_layout_of_bitsandbytes() -> None:
    check_chain({"quant": NF4(), "recover": QLoRA()})


@pytest.mark.parametrize("stage", [NF4(embedding="q8_0"), OnGrid(grid="nf4"), INT8(), Mixed(candidates=["nf4"])])
def test_and_no_other(stage: PostTraining) -> None:
    with pytest.raises(UserError, match="needs a model that is nf4") as raised:
        check_chain({"quant": stage, "recover": QLoRA()})
    assert "embedding stays dense" in str(raised.value.hint)
