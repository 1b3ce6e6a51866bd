"""What an ONNX folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Optional

from compress.errors import UserError
from compress.export.base import SAME_FP32, SAME_SCHEME, Expectation, Export, with_noise

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.export.base import Load
    from compress.stage import Grids

FILE = "model.onnx"
DATA = FILE + ".data"


class OnnxType(str, Enum):
    """What the graph multiplies with."""

    fp32 = "fp32"
    int8 = "int8"


class InputType(str, Enum):
    """What the inputs of INT8 products are rounded to, per token."""

    int8 = "int8"
    int16 = "int16"
    """Two INT8 parts: the products of many tokens take twice as long, those of one hardly longer."""


@dataclass
class OnnxExport(Export):
    """An ONNX graph with a KV cache, for onnxruntime, of every family.

    Inputs `input_ids`, `attention_mask`, `position_ids` and `past.N.key|value` (length 0 at first); outputs `logits`
    and `present.N.key|value`. The weights lie beside the graph, in `model.onnx.data`.
    """

    type: OnnxType = OnnxType.fp32
    """fp32: decoded weights; int8: projections as MatMulInteger on INT8 weights and INT8 activations per token, with
    the checkpoint's own codes where it lies on the INT8 grid, else rounded to nearest."""
    embedding: Optional[OnnxType] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Of embedding and output head, one scale per token of the vocabulary; by default as `type`."""
    rotate: bool = True
    """int8: dense weights and their inputs are rotated in blocks of 64 before they are rounded, so that no channel is
    louder than the others (QuaRot). What has codes already stays as it is."""
    activations: Optional[InputType] = None  # noqa: UP045
    """int8: of the inputs of the products. By default int8 where the weights are rotated, int16 where they are not."""

    format: ClassVar[str] = "onnx"
    usage: ClassVar[str] = (
        "import onnxruntime\n\n"
        "options = onnxruntime.SessionOptions()\n"
        "# INT8: exact sums on processors without VNNI too\n"
        'options.add_session_config_entry("session.x64quantprecision", "1")\n'
        'session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx", options)\n'
        "# past.N.key and past.N.value of length 0 begin; the present.N of one call are the past.N of the next"
    )
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    seconds_a_layer: ClassVar[float] = 4.0
    install: ClassVar[str] = "pip install 'compress[runtimes]' (or onnx, onnxscript and onnxruntime)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activations is not None and OnnxType.int8 not in (self.type, self.outer):
            raise UserError(
                f"activations={self.activations.value}, but this graph has no INT8 product to round the inputs of.",
                "Give type=int8 as well, or leave it out.",
            )

    def _rounded(self) -> str:
        if self.activations is None:
            return "INT8, in two parts where the weights are not rotated"
        return "INT8" if self.activations is InputType.int8 else "INT8, in two parts"

    def check_grids(self, grids: Grids) -> None:
        """INT8 products need the INT8 grid, or dense weights to round."""
        if self.type is OnnxType.int8:
            hint = "Give the export type=fp32, or quantize on the INT8 grid: quant@stages.quant=int8."
            self.check_codes("a projection", grids.linears, ("int8",), "type=int8", hint)
        if self.outer is OnnxType.int8:
            hint = "Give the export embedding=fp32, or the stage embedding=int8 (null leaves it dense)."
            self.check_codes("the embedding", grids.embedding, ("int8",), "it is to be int8", hint)

    def runtime(self, checkpoint: Checkpoint) -> str:
        """onnxruntime on the CPU."""
        return "onnxruntime"

    @property
    def outer(self) -> OnnxType:
        """Type of embedding and head."""
        return self.embedding or self.type

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """The graph and its weights, with config and tokenizer beside them."""
        from compress.export.onnx.write import write_onnx

        write_onnx(checkpoint, self, folder)

    def weight_files(self, folder: Path) -> list[Path]:
        """The graph and its weights."""
        return [folder / FILE, folder / DATA]

    def expect(self, checkpoint: Checkpoint, ids: Tensor, load: Load) -> Expectation:
        """The pipeline's model in fp32, and where it computes something else the exported one in torch."""
        from compress.export.onnx.write import expected

        pipeline, emulated, apart = expected(checkpoint, self, ids, load)
        if OnnxType.int8 in (self.type, self.outer):
            scheme = f"INT8 weights, activations per token in {self._rounded()}"
            return Expectation(pipeline, self.within(SAME_SCHEME), emulated, with_noise(scheme, apart))
        scheme = "the same weights decoded, activations as they are" if emulated is not None else ""
        return Expectation(pipeline, self.within(SAME_FP32), emulated, scheme)
