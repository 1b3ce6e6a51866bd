"""What is delivered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compress.errors import UserError
from compress.export.base import SAME_BF16, SAME_FP32, Expectation, Export

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.export.base import Load
    from compress.stage import Grids

OWN_USAGE = (
    "# with the package compress that made it installed: plain transformers does not know these grids\n"
    "import compress\n"
    "from transformers import AutoTokenizer\n\n"
    'model = compress.load("path/to/this/folder")\n'
    'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
)


class Merge(str, Enum):
    """What happens to an adapter."""

    none = "none"
    dense = "dense"


@dataclass
class HFExport(Export):
    """A Hugging Face folder that plain `transformers` (and `peft`) loads.

    On grids that transformers has no words for (integers, blocks of GGUF, mixed) it is the folder that `compress.load`
    reads: reloaded and compared the same way, and its card says so.
    """

    merge: Merge = Merge.none
    """none: adapter beside the 4-bit base, as measured; dense: adapter added to the decoded base, a bf16 model."""

    format: ClassVar[str] = "hf"
    usage: ClassVar[str] = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
    )
    plain_transformers: ClassVar[bool] = True

    def check_grids(self, grids: Grids) -> None:
        """Refuse to merge an adapter that no stage makes."""
        if self.merge is Merge.dense and not grids.adapter:
            raise UserError(
                f"export.{self.format}.merge=dense adds an adapter to its base, and no stage here makes one.",
                "Leave it out, or end the chain with an adapter: +recover@stages.recover=qlora.",
            )

    def runtime(self, checkpoint: Checkpoint) -> str:
        """`compress` for a layout of ours."""
        from compress.runtime.encoded import quantization_of

        return "transformers" if quantization_of(checkpoint.raw_config) is None else "compress"

    def how_to_load(self, checkpoint: Checkpoint) -> str:
        """`compress.load` for a layout of ours."""
        return self.usage if self.runtime(checkpoint) == "transformers" else OWN_USAGE

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Weights, config, tokenizer, adapter."""
        from compress.export.hf import write_artifact

        write_artifact(checkpoint, self, folder)

    def weight_files(self, folder: Path) -> list[Path]:
        """The safetensors files, an adapter's too."""
        from compress.checkpoint import weight_files

        return weight_files(folder)

    def expect(self, checkpoint: Checkpoint, ids: Tensor, load: Load) -> Expectation:
        """The pipeline's model as it is."""
        from compress.export.emulate import answer
        from compress.runtime.loading import reloaded_in
        from compress.stage import DENSE

        whole = DENSE in checkpoint.traits and checkpoint.dtype_name == "float32"
        return Expectation(
            answer(load(checkpoint, reloaded_in(checkpoint)), ids), self.within(SAME_FP32 if whole else SAME_BF16)
        )
