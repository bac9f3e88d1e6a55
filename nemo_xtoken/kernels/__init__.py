"""Triton kernels for what dominates the loss on a GPU, each behind the signature of its torch reference."""

from nemo_xtoken.config import Implementation
from nemo_xtoken.kernels.chunk_probabilities import Runs, chunk_probabilities
from nemo_xtoken.kernels.run_mean import mean_logits, mean_probabilities
from nemo_xtoken.kernels.softmax_statistics import SoftmaxStatistics, softmax_statistics
from nemo_xtoken.kernels.sparse_projection import ScatterPlan, scatter_columns

__all__ = [
    "Implementation",
    "Runs",
    "ScatterPlan",
    "SoftmaxStatistics",
    "chunk_probabilities",
    "mean_logits",
    "mean_probabilities",
    "scatter_columns",
    "softmax_statistics",
]
