"""Is this folder a model to start from? Every way in which it is not gets one message.

`check_folder` reads headers and small files only: milliseconds for any size, and neither torch nor transformers.
`check_finite` and `weights_fingerprint` read all the weights, one tensor at a time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from compress.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, tensor_digests, weights_key
from compress.errors import UserError
from compress.writer import INDEX, SINGLE

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("compress")

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""Any one of these sets of files is a tokenizer of the families supported."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""


def check_is_folder(folder: Path) -> None:
    """Refuse files, and what is not there.

    Raises:
        UserError: with what to give instead.
    """
    if folder.suffix == ".gguf" and folder.is_file():
        raise UserError(
            f"The model {folder} is a GGUF file; compress starts from the checkpoint it was made from.",
            "Give that one: model.path=DIR_OR_ID. (Or AutoModelForCausalLM.from_pretrained(DIR, gguf_file=NAME) and "
            "save_pretrained, if it is lost.)",
        )
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"The model folder {folder} {what}.", "Give a Hugging Face model folder: model.path=DIR_OR_ID.")


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a whole, dense, supported Hugging Face model.

    Raises:
        UserError: it is missing or no folder; config.json is missing, broken, of an unsupported architecture or of a
            quantized model; weights are missing, pickled, damaged or short of a shard; there is no tokenizer.
    """
    check_is_folder(folder)
    config = _read_config(folder)
    beside = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if (folder / name).exists()]
    if beside:
        raise UserError(
            f"The model in {folder} has an adapter beside it ({beside[0]}), which would be left out of the result.",
            "Merge it first: PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(DIR). Or move "
            "it away.",
        )
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "unknown method") if isinstance(quantized, dict) else quantized
        raise UserError(
            f"The model in {folder} is already quantized ({method}); compress starts from a dense checkpoint.",
            "Give the model it was made from: model.path=DIR_OR_ID.",
        )
    _check_architecture(config)
    for file in weight_files(folder):
        _check_safetensors(file)
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise UserError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt).",
            "Copy these files from where the model came from: AutoTokenizer.from_pretrained(ID).save_pretrained(DIR).",
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files transformers would load from `folder`, sorted by name.

    Raises:
        UserError: there are none, only pickles, or fewer than the index names.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if found := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
        raise UserError(
            f"The weights in {folder} are pickled ({found[0]}); opening a pickle can run any code, so it is refused.",
            "Convert them to safetensors where you trust them: AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(NEW_DIR).",
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    beside = f" (it has {', '.join(others[:3])}, which is something else)" if others else ""
    raise UserError(
        f"There are no weights in {folder}: neither {SINGLE} nor {INDEX}{beside}.",
        "Give a folder with safetensors weights: model.path=DIR_OR_ID. A repository with only *.bin weights has to be "
        "converted to safetensors first.",
    )


def check_complete(folder: Path) -> None:
    """Refuse a checkpoint that lacks a parameter of its architecture: transformers would start it at random.

    Raises:
        UserError: naming the first tensor that is missing, or of another shape.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from compress.arch import adapter_for

    try:
        config = AutoConfig.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except UserError:
        raise
    except Exception as error:  # every library below has errors of its own for a broken or unknown file
        raise UserError(
            f"The model in {folder} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}.",
            "Look at its config.json and tokenizer files, or copy the model again. (tokenizer.model alone needs pip "
            "install sentencepiece.)",
        ) from error
    architecture = adapter_for(config)
    found: dict[str, list[int]] = {}
    places: dict[str, tuple[Path, str]] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                own = architecture.parameter(name)
                found[own], places[own] = opened.get_slice(name).get_shape(), (file, name)
    for name, parameter in model.named_parameters():
        if found.get(name) != list(parameter.shape):
            what = f"has shape {found[name]}, not {list(parameter.shape)}" if name in found else "is missing"
            raise UserError(
                f"The checkpoint in {folder} does not fit its config.json: tensor {name} {what}.",
                "Copy the model again, or give another one: model.path=DIR_OR_ID.",
            )
    embedding, head = (f"{path}.weight" for path in (architecture.modules.embedding, architecture.modules.head))
    if architecture.shape(config).tied and head in places and not _equal(places[embedding], places[head]):
        raise UserError(
            f"The config.json in {folder} says that the head is the embedding (tie_word_embeddings), and there is a "
            "head with other numbers.",
            'Set "tie_word_embeddings": false in config.json, or leave the head out of the file.',
        )


def _equal(*places: tuple[Path, str]) -> bool:
    """Whether two tensors, each a file and a name, hold the same numbers."""
    import torch
    from safetensors import safe_open

    tensors = []
    for file, name in places:
        with safe_open(file, "pt") as opened:
            tensors.append(opened.get_tensor(name))
    return tensors[0].dtype == tensors[1].dtype and torch.equal(*tensors)


def check_finite(folder: Path) -> None:
    """Refuse weights with NaN or infinite values. Reads everything, one tensor in memory at a time.

    Raises:
        UserError: naming the first such tensor.
    """
    import torch

    logger.info("Checking the weights in %s for NaN and Inf", folder)
    for name, tensor in _tensors(folder):
        if not tensor.numel() or not tensor.is_floating_point():
            continue
        # the extremes are enough: aminmax passes a NaN on, and takes no memory
        lowest, highest = tensor.aminmax()
        if not (torch.isfinite(lowest) and torch.isfinite(highest)):
            count = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"Tensor {name} in {folder} holds {count} NaN or infinite values of {tensor.numel()}.",
                "The checkpoint is damaged or its training diverged: give another one, model.path=DIR_OR_ID.",
            )


def weights_fingerprint(folder: Path) -> str:
    """Sha256 over the names, types, shapes and bytes of all tensors, however they are spread over files."""
    logger.info("Hashing the weights in %s", folder)
    return weights_key(tensor_digests(folder))


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                yield name, opened.get_tensor(name)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        adapter = (
            " It is a PEFT adapter: merge it into its base model." if (folder / "adapter_config.json").is_file() else ""
        )
        raise UserError(
            f"{folder} is not a Hugging Face model folder: it has no config.json.{adapter}",
            "Give a folder with config.json, *.safetensors and a tokenizer: model.path=DIR_OR_ID.",
        )
    values = _read_object(file)
    if not isinstance(values.get("model_type"), str):
        raise UserError(f"{file} names no model_type.", "Give the config.json that came with the model.")
    return values


def _read_object(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not valid JSON: {error}.", "Fetch it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object.", "Fetch it again.")
    return values


def _check_architecture(config: dict[str, Any]) -> None:
    from compress.arch import adapter_for

    # the type alone decides; a transformers config would cost seconds of imports
    adapter_for(SimpleNamespace(model_type=config["model_type"]))


def _indexed(folder: Path) -> list[Path]:
    weight_map = _read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no weight_map.", "Fetch it again.")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(names)} weight files its index names: {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}.",
            "Fetch the missing files; a download was probably interrupted.",
        )
    for name in names:
        present = _check_safetensors(folder / name)
        absent = sorted(tensor for tensor, file in weight_map.items() if file == name and tensor not in present)
        if absent:
            raise UserError(
                f"{folder / name} does not hold tensor {absent[0]}, which the index says it does.", "Fetch both again."
            )
    return [folder / name for name in names]


def _check_safetensors(file: Path) -> dict[str, Any]:
    """The header of a whole safetensors file; the format has no checksum, so this is all its size can tell."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(file, f"its header says it is {header_bytes:,} bytes long, the whole file has {size:,}")
        try:
            header = json.loads(opened.read(header_bytes))
            header.pop("__metadata__", None)
            payload = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise _damaged(file, "its header is not what safetensors writes") from error
    expected = 8 + header_bytes + payload
    if expected != size:
        raise _damaged(file, f"it has {size:,} bytes, its header says {expected:,}")
    if not header:
        raise _damaged(file, "it holds no tensor")
    return dict(header)


def _damaged(file: Path, why: str) -> UserError:
    return UserError(
        f"{file} is truncated or damaged: {why}.", "Fetch it again; the download was probably interrupted."
    )
