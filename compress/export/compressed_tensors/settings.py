"""What a compressed-tensors folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compress.errors import UserError
from compress.export.base import SAME_BF16, SAME_FP32, SAME_SCHEME, Expectation, Export
from compress.grid_names import GROUPS
from compress.stage import DENSE

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.export.base import Load
    from compress.stage import Grids


class Scheme(str, Enum):
    """Bits of weights and activations."""

    auto = "auto"
    w8a8 = "w8a8"
    w8a16 = "w8a16"
    w4a16 = "w4a16"
    w4a16_asym = "w4a16_asym"


@dataclass
class CompressedTensorsExport(Export):
    """A folder for vLLM, which plain transformers loads too (package compressed-tensors): Llama-like families.

    Codes that lie on an INT8 or INT4 grid are written unchanged; what lies on other grids is decoded.
    """

    scheme: Scheme = Scheme.auto
    """auto: as the checkpoint says, INT8 weights with the activations they were made for; w8a16: INT8 weights alone. Of
    a dense checkpoint the scheme must be named, and its projections are rounded to nearest."""
    group: int = 64
    """Weights that share a scale when a dense checkpoint becomes w4a16: 32, 64 or 128."""

    format: ClassVar[str] = "compressed_tensors"
    usage: ClassVar[str] = (
        "# vllm serve path/to/this/folder, or with compressed-tensors installed:\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
    )
    packages: ClassVar[tuple[str, ...]] = ("compressed_tensors",)
    install: ClassVar[str] = "pip install 'compress[runtimes]' (or compressed-tensors)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in GROUPS:
            raise UserError(f"export.group={self.group} is not a group size of INT4.", f"Give one of {GROUPS}.")

    def check(self, checkpoint: Checkpoint) -> None:
        """Also refuse families whose projections are no nn.Linear, and groups that most of them are not made of."""
        from compress.arch import adapter_for
        from compress.arch.inventory import inventory

        if adapter_for(checkpoint.config).modules.conv1d:
            raise UserError(
                f"compressed-tensors has no words for the projections of {checkpoint.config.model_type} (Conv1D).",
                "Leave the export out, or write gguf: +export@export.gguf=gguf.",
            )
        if self.scheme in (Scheme.w4a16, Scheme.w4a16_asym):
            linears = [p for p in inventory(checkpoint.config) if p.role == "linear" and len(p.shape) == 2]
            dense = [p for p in linears if p.shape[1] % self.group]
            if 2 * sum(p.numel for p in dense) > sum(p.numel for p in linears):
                raise UserError(
                    f"with export.group={self.group}, {len(dense)} of {len(linears)} projections would stay dense: "
                    f"their rows of {dense[0].shape[1]} are no whole number of groups.",
                    f"Give a smaller group, of {GROUPS}.",
                )

    def check_grids(self, grids: Grids) -> None:
        """INT8 and INT4 only; an embedding is decoded."""
        from compress.export.compressed_tensors.write import kind_of, nothing_found
        from compress.grids import grid_named

        if grids.linears == (DENSE,):
            if self.scheme is Scheme.auto:
                raise nothing_found()
            return
        kinds = [kind_of("the model", grid_named(grid), self.scheme, None) for grid in grids.linears]
        if kinds and not any(kinds):
            raise nothing_found()

    def runtime(self, checkpoint: Checkpoint) -> str:
        """Plain transformers; vLLM reads the same folder."""
        return "transformers"

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Weights, config, tokenizer."""
        from compress.export.compressed_tensors.write import write_folder

        write_folder(checkpoint, self.scheme, self.group, folder)

    def weight_files(self, folder: Path) -> list[Path]:
        """The safetensors files."""
        from compress.checkpoint import weight_files

        return weight_files(folder)

    def expect(self, checkpoint: Checkpoint, ids: Tensor, load: Load) -> Expectation:
        """The pipeline's model; where activations are rounded, or weights were here, an emulation too."""
        from compress.export.compressed_tensors.emulate import expected

        pipeline, emulated, rounded = expected(checkpoint, self.scheme, self.group, ids, load)
        if rounded:
            scheme = f"weights as written, {' and '.join(rounded)}"
            return Expectation(pipeline, self.within(SAME_SCHEME), emulated, scheme)
        same = self.within(SAME_FP32 if checkpoint.dtype_name == "float32" else SAME_BF16)
        scheme = "weights as written, activations as they are" if emulated is not None else ""
        return Expectation(pipeline, same, emulated, scheme)
