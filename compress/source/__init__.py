"""Where a model comes from: each source resolves to a Hugging Face folder that is known to be good."""

from compress.source.check import check_complete, check_finite, check_folder, weight_files, weights_fingerprint
from compress.source.embedded import EmbeddedModel
from compress.source.huggingface import HuggingFaceModel
from compress.source.resolved import ResolvedModel

__all__ = [
    "EmbeddedModel",
    "HuggingFaceModel",
    "ResolvedModel",
    "check_complete",
    "check_finite",
    "check_folder",
    "weight_files",
    "weights_fingerprint",
]
