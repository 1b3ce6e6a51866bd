"""What a GGUF file holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Optional

from compress.errors import UserError
from compress.export.base import SAME_FP32, SAME_SCHEME, Expectation, Export

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.export.base import Load
    from compress.stage import Grids

FILE = "model.gguf"
OUTER = ("embed", "wte", "lm_head")
"""What the names of embeddings and output heads have in common."""


class GGUFType(str, Enum):
    """The types of ggml that our grids write."""

    f16 = "f16"
    q8_0 = "q8_0"
    q5_1 = "q5_1"
    q5_0 = "q5_0"
    q4_0 = "q4_0"


@dataclass
class GGUFExport(Export):
    """A GGUF file for llama.cpp, of the Llama, Qwen2, Qwen3 and GPT-2 families.

    Their tokenizers must be byte-level BPE (Llama 3, SmolLM, Qwen, GPT-2): those of SentencePiece are refused.

    What already lies on a GGUF grid is written with its codes unchanged. The settings say what becomes of dense
    weights; a row that is no whole number of blocks of 32 stays f16, and vectors are f32.
    """

    type: GGUFType = GGUFType.f16
    """Of dense projections, rounded as llama.cpp rounds."""
    embedding: Optional[GGUFType] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Of a dense embedding and output head; by default f16 beside f16, else q8_0, as llama.cpp has it."""
    tensors: dict[str, GGUFType] = field(default_factory=dict)
    """Exceptions: a part of a weight's name ("mlp.down_proj", "layers.0.") and its type; the last one that fits:
    `+export.gguf.tensors={down_proj:q8_0}` (they are added, hence the +)."""

    format: ClassVar[str] = "gguf"
    usage: ClassVar[str] = (
        "from llama_cpp import Llama\n\n"
        'model = Llama("path/to/this/folder/model.gguf", n_ctx=2048)\n'
        'model.create_chat_completion([{"role": "user", "content": "Hello"}])'
    )
    own_tokenizer: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("gguf", "llama_cpp")
    install: ClassVar[str] = "pip install 'compress[runtimes]' (or gguf and llama-cpp-python)"

    def check(self, checkpoint: Checkpoint) -> None:
        """Also refuse models that llama.cpp would run as something else."""
        from compress.export.gguf.header import check_family, words_cut

        check_family(checkpoint.config)
        words_cut(checkpoint.tokenizer())
        names = [name for name in checkpoint.shards if name.endswith("weight")]
        for part in self.tensors:
            if not any(part in name for name in names):
                raise UserError(
                    f"export.tensors names {part!r}, which is in the name of no weight of this model.",
                    f"Names are such as {names[len(names) // 2]}.",
                )

    def check_grids(self, grids: Grids) -> None:
        """What lies on another grid than ggml's is decoded, into f16 only."""
        kept = [kind.value for kind in GGUFType]
        if self.type is not GGUFType.f16:
            hint = "Quantize on a GGUF grid instead (q4_0, q8_0, q5_0, q5_1), or give the export type=f16."
            self.check_codes("a projection", grids.linears, kept, f"type={self.type.value}", hint)
        if self.outer is not GGUFType.f16:
            hint = "Give the stage embedding=q8_0 (null leaves it dense), or the export embedding=f16."
            self.check_codes("the embedding", grids.embedding, kept, f"it is to be {self.outer.value}", hint)
        for part, exception in self.tensors.items():
            if exception is not GGUFType.f16:
                asked = f"tensors has {part}: {exception.value}"
                if any(word in part for word in OUTER):
                    self.check_codes("the embedding", grids.embedding, kept, asked, f"Leave {part} out, or give f16.")
                else:
                    self.check_codes("a projection", grids.linears, kept, asked, f"Leave {part} out, or give f16.")

    def runtime(self, checkpoint: Checkpoint) -> str:
        """llama.cpp through llama-cpp-python."""
        return "llama_cpp"

    @property
    def outer(self) -> GGUFType:
        """Of a dense embedding and output head."""
        return self.embedding or (GGUFType.f16 if self.type is GGUFType.f16 else GGUFType.q8_0)

    def type_of(self, name: str, embedding: bool) -> GGUFType:
        """The type of the dense matrix `name`."""
        chosen = self.outer if embedding else self.type
        for part, exception in self.tensors.items():
            if part in name:
                chosen = exception
        return chosen

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """One file, `model.gguf`."""
        from compress.export.gguf.write import write_gguf

        write_gguf(checkpoint, self.type_of, folder / FILE)

    def weight_files(self, folder: Path) -> list[Path]:
        """The one file."""
        return [folder / FILE]

    def expect(self, checkpoint: Checkpoint, ids: Tensor, load: Load) -> Expectation:
        """The model in fp32; where the file holds blocks, an emulation of the rounded activations too."""
        from compress.export.gguf.emulate import expected

        pipeline, emulated, rounds = expected(checkpoint, self.type_of, ids, load)
        if emulated is None:
            return Expectation(pipeline, self.within(SAME_FP32))
        if not rounds:
            return Expectation(
                pipeline, self.within(SAME_FP32), emulated, "the same weights decoded, activations in fp16"
            )
        scheme = "activations rounded to 8 bits in blocks of 32, as llama.cpp rounds them"
        return Expectation(pipeline, self.within(SAME_SCHEME), emulated, scheme)
