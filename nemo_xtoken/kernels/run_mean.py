"""The chunk reduction: from the logits of a chunk's rows to one row per chunk (`merge="mean"`)."""

from __future__ import annotations

from torch import Tensor

from nemo_xtoken.config import Implementation
from nemo_xtoken.kernels.choice import takes_triton
from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.losses.merge import run_mean


def mean_probabilities(
    logits: Tensor,
    log_normaliser: Tensor,
    start: Tensor,
    end: Tensor,
    temperature: float = 1.0,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Mean over the rows of each run of exp(logits / temperature - log_normaliser): the student's side.

    logits          [rows, local columns] float32 or bfloat16 (torch also float64)
    log_normaliser  [rows] float32, the log-sum-exp of logits / temperature over the whole vocabulary
    start, end      [c] int64, rows of each run, end exclusive; at least one row each, increasing, without overlap
    Returns [c, local columns] float32 (float64 for float64), without log-probabilities or probabilities of the rows
    in memory. Differentiable in logits and log_normaliser; rows of no run have gradient 0.
    Torch equivalent: `mean_probabilities_reference`.

    Bytes moved for 512 rows of Llama-3.1 (128,256 columns), each a chunk, in float32: forward reads the logits and
    writes the means, 525 MB; backward reads both gradient and logits and writes a gradient, 788 MB. Floor on an H100
    (3.35 TB/s): 157 µs and 235 µs; with bfloat16 logits 118 µs and 157 µs.
    Raises UnavailableError for implementation="triton" where it can't run.
    """
    if not takes_triton(implementation, logits):
        return mean_probabilities_reference(logits, log_normaliser, start, end, temperature)
    from nemo_xtoken.kernels.programs.run_mean import RunMean

    means: Tensor = RunMean.apply(logits, log_normaliser, start, end, temperature)  # pyright: ignore
    return means


def mean_logits(
    logits: Tensor, start: Tensor, end: Tensor, temperature: float = 1.0, *, implementation: Implementation = "auto"
) -> Tensor:
    """Mean over the rows of each run of logits / temperature: the teacher's side, up to a constant per run.

    Shapes, dtypes and errors as in `mean_probabilities`; differentiable. Torch equivalent: `mean_logits_reference`.

    Bytes moved for 512 rows of Qwen3 (151,936 columns), each a chunk, in float32: 622 MB. Floor on an H100
    (3.35 TB/s): 186 µs, with bfloat16 logits 139 µs; only the reached 109,828 columns: 134 µs and 101 µs.
    """
    if not takes_triton(implementation, logits):
        return mean_logits_reference(logits, start, end, temperature)
    from nemo_xtoken.kernels.programs.run_mean import RunMean

    means: Tensor = RunMean.apply(logits, None, start, end, temperature)  # pyright: ignore
    return means


def mean_probabilities_reference(
    logits: Tensor, log_normaliser: Tensor, start: Tensor, end: Tensor, temperature: float = 1.0
) -> Tensor:
    """The same as `mean_probabilities` in torch, on any device and float dtype."""
    return run_mean((accumulated(logits) / temperature - log_normaliser.unsqueeze(-1)).exp(), start, end)


def mean_logits_reference(logits: Tensor, start: Tensor, end: Tensor, temperature: float = 1.0) -> Tensor:
    """The same as `mean_logits` in torch, on any device and float dtype."""
    return run_mean(accumulated(logits) / temperature, start, end)
