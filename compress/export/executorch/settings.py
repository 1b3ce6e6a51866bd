"""What an ExecuTorch program holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compress.errors import UserError
from compress.export.base import SAME_FP32, SAME_SCHEME, Expectation, Export, with_noise
from compress.grid_names import GROUPS, integer_name

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.export.base import Load
    from compress.stage import Grids

FILE = "model.pte"
SHORTEST = 2

# ExecuTorch's own names, of which one is no name in Python
ExecutorchType = Enum("ExecutorchType", {"fp32": "fp32", "8da4w": "8da4w"}, type=str)
ExecutorchType.__doc__ = """What the program multiplies with."""
FP32, EIGHT_FOUR = ExecutorchType("fp32"), ExecutorchType("8da4w")


@dataclass
class ExecutorchExport(Export):
    """A .pte program for the ExecuTorch runtime, of every family: XNNPACK computes, the KV cache is inside.

    `forward(input_ids [1, n], cache_position [n]) -> logits [1, n, vocab]`, as ExecuTorch's own language model runner
    calls it. The cache's length is fixed.
    """

    type: ExecutorchType = FP32
    """fp32: decoded weights; 8da4w: projections INT4 in groups, head and embedding INT8, activations INT8 per token.
    Codes on the INT4 and INT8 grids are written unchanged, dense weights rounded to nearest; what INT8 codes of the
    checkpoint's own read is rounded in two INT8 parts."""
    group: int = 32
    """Weights that share a scale when a dense projection becomes INT4: 32, 64 or 128; one whose rows are no whole
    number of groups becomes INT8."""
    smooth: bool = True
    """8da4w: loud input channels made quieter before dense projections and the head are rounded, so that INT8 inputs
    keep the others (SmoothQuant). What has codes already stays as it is."""
    rotate: bool = True
    """8da4w: inputs of dense projections and of the head are rotated in blocks of 64 before they are rounded, so that
    none is louder than the others (QuaRot). What has codes already stays as it is."""
    context: int = 1024
    """Tokens in the cache, at most what the model can read."""

    format: ClassVar[str] = "executorch"
    usage: ClassVar[str] = (
        "import torch\n"
        "from executorch.runtime import Runtime\n\n"
        'program = Runtime.get().load_program("path/to/this/folder/model.pte")\n'
        'forward = program.load_method("forward")\n'
        "# token ids [1, n] and their positions [n]: the cache inside remembers what came before\n"
        "logits = forward.execute([torch.tensor([[1, 2, 3]]), torch.arange(3)])[0]"
    )
    packages: ClassVar[tuple[str, ...]] = ("executorch", "torchao")
    seconds_a_layer: ClassVar[float] = 30.0
    install: ClassVar[str] = "pip install 'compress[executorch]' (or executorch, which brings torchao)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in GROUPS:
            raise UserError(f"export.group={self.group} is not a group size of XNNPACK.", f"Give one of {GROUPS}.")
        if self.context < SHORTEST:
            raise UserError(f"export.context={self.context} must be at least {SHORTEST}.")

    @property
    def positions(self) -> int:
        """Those of the cache."""
        return self.context

    def check_grids(self, grids: Grids) -> None:
        """XNNPACK has products for INT8 and symmetric INT4, and dense weights can be rounded to them."""
        if self.type is not EIGHT_FOUR:
            return
        products = ("int8", *(integer_name(4, group, True) for group in GROUPS))
        hint = "Give the export type=fp32, or the stage a grid of XNNPACK: int8 or a symmetric int4."
        self.check_codes("a projection", grids.linears, products, "type=8da4w", hint)
        hint = "Give the export type=fp32, or the stage embedding=int8 (null leaves it dense)."
        self.check_codes("the embedding", grids.embedding, products, "type=8da4w", hint)

    def runtime(self, checkpoint: Checkpoint) -> str:
        """ExecuTorch's own."""
        return "executorch"

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """The program, with config and tokenizer beside it."""
        from compress.export.executorch.write import write_program

        write_program(checkpoint, self, folder)

    def weight_files(self, folder: Path) -> list[Path]:
        """The one file."""
        return [folder / FILE]

    def expect(self, checkpoint: Checkpoint, ids: Tensor, load: Load) -> Expectation:
        """The pipeline's model in fp32, and where the program computes something else, that in torch."""
        from compress.export.executorch.write import expected

        pipeline, emulated, apart = expected(checkpoint, self, ids, load)
        if self.type is EIGHT_FOUR:
            scheme = (
                "weights as written, activations rounded to 8 bits per token with a zero point (in two parts before "
                "INT8 codes of the checkpoint's own)"
            )
            return Expectation(pipeline, self.within(SAME_SCHEME), emulated, with_noise(scheme, apart))
        scheme = "the same weights decoded, activations as they are" if emulated is not None else ""
        return Expectation(pipeline, self.within(SAME_FP32), emulated, scheme)
