"""`Architecture`: everything the rest of the program may ask about a model family.

A family file (`decoder.py`, `gpt2.py`, `gpt_neox.py`) says where its modules are, which slices of which tensor belong
to which group, and how its config states the sizes. Everything else follows here: the layout of a checkpoint tensor,
exact parameter counts, and the config of a pruned model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from compress.arch.modules import Modules
from compress.arch.shape import HIDDEN, Axes, Axis, Shape, Widths
from compress.errors import UserError

Config: TypeAlias = Any  # a transformers.PreTrainedConfig; naming it would import transformers (seconds) for --help


class Kept(Protocol):
    """What `pruned_config` must know of a plan (see `compress.prune.plan.Plan`)."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Original indices of the layers that stay, ascending."""

    @property
    def widths(self) -> Widths:
        """How many groups of each kind stay."""


@dataclass(frozen=True)
class Architecture:
    """One model family: its modules, its tensors, its config.

    Attributes:
        family: the config's `model_type`.
        modules: dotted module paths.
        read_shape: sizes stated by a config; raises UserError for a variant of the family that is not supported.
        layer_tensors: name within a layer -> layout, for every parameter of one layer.
        write_widths: (config, old shape, new widths): state the new sizes, in place, layers excepted; raises UserError
            for widths the family's config has no words for.
        buffers: names (within a layer, or of the stack) that old checkpoints hold and models no longer do.
        aliases: checkpoint names that differ from the model's parameter names.
    """

    family: str
    modules: Modules
    read_shape: Callable[[Config], Shape]
    layer_tensors: Callable[[Config, Shape], dict[str, Axes]]
    write_widths: Callable[[Config, Shape, Widths], None]
    buffers: frozenset[str] = frozenset()
    aliases: dict[str, str] = field(default_factory=dict)

    def shape(self, config: Config) -> Shape:
        """All sizes of the model that `config` describes.

        Raises:
            UserError: layers of unequal sizes (`per_layer_config`), or a variant of the family that is not supported.
        """
        if getattr(config, "is_heterogeneous", False):
            raise UserError(
                f"This {self.family} model's config has a `per_layer_config`: its layers differ in size.",
                "Only models whose layers are all of one size are supported.",
            )
        return self.read_shape(config)

    def split(self, name: str) -> tuple[int | None, str]:
        """A checkpoint tensor's (layer, name within the layer), or (None, the model's own parameter name).

        Checkpoints of the bare decoder (GPT-2's on the hub) lack the stack's prefix; both forms are understood.
        """
        stack, layers = re.escape(self.modules.stack), re.escape(self.modules.layers.rpartition(".")[2])
        if match := re.fullmatch(rf"(?:{stack}\.)?{layers}\.(\d+)\.(.+)", name):
            return int(match[1]), match[2]
        name = self.aliases.get(name, name)
        outside = name.startswith(f"{self.modules.stack}.") or name == f"{self.modules.head}.weight"
        return None, name if outside else f"{self.modules.stack}.{name}"

    def parameter(self, name: str) -> str:
        """The model's own name of a checkpoint tensor: some checkpoints lack the stack's prefix, or spell the head
        differently."""
        layer, key = self.split(name)
        return key if layer is None else f"{self.modules.layer(layer)}.{key}"

    def is_tied_copy(self, config: Config, name: str) -> bool:
        """Whether the checkpoint tensor `name` is a tied head, which some files hold beside its embedding."""
        return self.shape(config).tied and self.parameter(name) == f"{self.modules.head}.weight"

    def renumbered(self, name: str, layer: int) -> str:
        """The same tensor's name in another layer, in the checkpoint's own spelling."""
        layers = re.escape(self.modules.layers.rpartition(".")[2])
        return re.sub(rf"^(.*?\b{layers}\.)\d+\.", rf"\g<1>{layer}.", name, count=1)

    def axes(self, config: Config, name: str) -> Axes | None:
        """Layout of the checkpoint tensor `name`, a dimension each; None for a buffer that models no longer hold.

        Raises:
            UserError: the family has no such tensor.
        """
        shape = self.shape(config)
        layer, key = self.split(name)
        if (key if layer is not None else key.removeprefix(f"{self.modules.stack}.")) in self.buffers:
            return None
        tensors = self.layer_tensors(config, shape) if layer is not None else self._once(shape, config)
        if key not in tensors or (layer is not None and layer >= shape.layers):
            raise UserError(
                f"The checkpoint holds a tensor `{name}` that a {self.family} model of this config does not have.",
                "Give a plain checkpoint, as AutoModelForCausalLM saves it: no adapters, no quantization state.",
            )
        return tensors[key]

    def outside_tensors(self, config: Config) -> dict[str, Axes]:
        """Parameter name -> layout of what is outside the layers: embedding, head (tied or not), positions, norm."""
        return self._once(self.shape(config), config)

    def non_embedding_parameters(self, config: Config, widths: Widths | None = None) -> int:
        """Parameters of the layers and the final norm: without embedding, head (tied or not) and learned positions.

        Args:
            config: of the dense model.
            widths: count as if the model had these; default: its own.
        """
        shape = self.shape(config)
        widths = widths or shape.widths
        per_layer = sum(_numel(axes, widths) for axes in self.layer_tensors(config, shape).values())
        final = [axes for name, axes in self._once(shape, config).items() if name.startswith(self.modules.final_norm)]
        return widths.layers * per_layer + sum(_numel(axes, widths) for axes in final)

    def check(self, config: Config, widths: Widths) -> None:
        """Refuse widths that a config of this family cannot state, before anything is computed.

        Raises:
            UserError: says what is possible.
        """
        self.narrowed(config, widths)

    def narrowed(self, config: Config, widths: Widths) -> Config:
        """A copy of `config` with other widths, its first layers.

        Raises:
            UserError: the family's config cannot state them.
        """
        return self._pruned(config, range(widths.layers), widths)

    def pruned_config(self, config: Config, plan: Kept) -> Config:
        """A copy of `config` that describes the model after `plan`, so that a plain reload builds exactly that.

        Raises:
            UserError: the family's config cannot state the plan's widths.
        """
        return self._pruned(config, plan.layers, plan.widths)

    def _pruned(self, config: Config, layers: Sequence[int], widths: Widths) -> Config:
        shape = self.shape(config)
        pruned = copy.deepcopy(config)
        self.write_widths(pruned, shape, widths)
        if len(layers) < shape.layers:
            _keep_layers(pruned, layers, shape.layers)
        _validate(pruned, self.family)
        return pruned

    def _once(self, shape: Shape, config: Config) -> dict[str, Axes]:
        """Layout of the parameters outside the layers, by the model's parameter names."""
        vocab = Axis(None, unit=shape.vocab)
        tensors: dict[str, Axes] = {
            f"{self.modules.embedding}.weight": (vocab, HIDDEN),
            f"{self.modules.final_norm}.weight": (HIDDEN,),
            # a tied model's checkpoint may hold its head too
            f"{self.modules.head}.weight": (vocab, HIDDEN),
        }
        if f"{self.modules.residual_norms[0]}.bias" in self.layer_tensors(config, shape):  # LayerNorm, not RMSNorm
            tensors[f"{self.modules.final_norm}.bias"] = (HIDDEN,)
        if self.modules.positions is not None:
            positions = Axis(None, unit=config.max_position_embeddings)
            tensors[f"{self.modules.positions}.weight"] = (positions, HIDDEN)
        return tensors


def _numel(axes: Axes, widths: Widths) -> int:
    count = 1
    for axis in axes:
        count *= axis.size(widths)
    return count


def _keep_layers(config: Config, layers: Sequence[int], total: int) -> None:
    """Renumber everything a config says about single layers.

    A reload takes `layer_types` and `no_rope_layers` from the lists where they are stated (transformers derives them
    from `max_window_layers` and `no_rope_layer_interval` only where they are missing, and always saves them), so the
    lists carry each remaining layer's own behaviour. `max_window_layers` is the number of first layers *without* a
    sliding window; it is kept true for runtimes that read it instead of the list.
    """
    for name, value in list(vars(config).items()):
        per_layer = "layer" in name and isinstance(value, (list, tuple)) and len(value) >= total
        if per_layer and (len(value) == total or name == "no_rope_layers"):  # that one may be longer than the model
            setattr(config, name, [value[layer] for layer in layers])
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = sum(layer < config.max_window_layers for layer in layers)
    config.num_hidden_layers = len(layers)


def _validate(config: Config, family: str) -> None:
    """Run the checks transformers will run when it loads the config (Llama: width must be a multiple of the heads)."""
    try:
        config.validate()
    except Exception as error:
        from huggingface_hub.errors import StrictDataclassError  # slow to import: only where it is needed

        if not isinstance(error, StrictDataclassError):
            raise
        reason = str(error).rpartition("ValueError: ")[2]
        raise UserError(
            f"transformers refuses a {family} config of these sizes: {reason}",
            "Choose another `heads` or `hidden` fraction, or cut neither.",
        ) from error
