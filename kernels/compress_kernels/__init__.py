"""Fast operations for model compression, each in plain torch, C and Triton. See kernels/README.md."""

from compress_kernels.backend import backend_name
from compress_kernels.blockwise4bit import (
    Blockwise4bit,
    dequantize_4bit,
    effective_absmax,
    encode_4bit,
    quantize_4bit,
    quantize_scales,
)
from compress_kernels.chunked_loss import FusedLoss
from compress_kernels.codes import DYNAMIC_CODE, FP4_CODE, NF4_CODE
from compress_kernels.fused_kl import Divergence, divergence, fused_kl
from compress_kernels.grid_weight import LatentGradients, LatentWeight, round_weight, round_weight_backward
from compress_kernels.int8_linear import linear_int8, quantize_rows_int8
from compress_kernels.linear4bit import decode_rows_4bit, embedding_4bit, linear_4bit
from compress_kernels.rms_norm import rms_norm, rms_norm_reference
from compress_kernels.rows import Divergences
from compress_kernels.sparse_kl import SparseTargets, sparse_kl, sparse_targets
from compress_kernels.sweep import Sweep, Swept, sweep_columns

__all__ = [
    "DYNAMIC_CODE",
    "FP4_CODE",
    "NF4_CODE",
    "Blockwise4bit",
    "Divergence",
    "Divergences",
    "FusedLoss",
    "LatentGradients",
    "LatentWeight",
    "SparseTargets",
    "Sweep",
    "Swept",
    "backend_name",
    "decode_rows_4bit",
    "dequantize_4bit",
    "divergence",
    "effective_absmax",
    "embedding_4bit",
    "encode_4bit",
    "fused_kl",
    "linear_4bit",
    "linear_int8",
    "quantize_4bit",
    "quantize_rows_int8",
    "quantize_scales",
    "rms_norm",
    "rms_norm_reference",
    "round_weight",
    "round_weight_backward",
    "sparse_kl",
    "sparse_targets",
    "sweep_columns",
]
