"""The student's side of a block in as few passes as can be: its labels' log-probabilities, and one row per chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.config import Implementation
from nemo_xtoken.kernels.choice import takes_triton
from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.losses.merge import label_log_probability, run_mean, run_rows
from nemo_xtoken.losses.vocabulary import Vocabulary, log_softmax


@dataclass(frozen=True, eq=False)
class Runs:
    """Rows of chunks: start and end [c] int64, ends exclusive, increasing, without overlap.

    is_every_row  every row is a run by itself, so that there is nothing to add up
    """

    start: Tensor
    end: Tensor
    is_every_row: bool = False

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the rows of each run: [rows, local] -> [c, local]."""
        return x if self.is_every_row else run_mean(x, self.start, self.end)

    def spread(self, grad: Tensor, rows: int) -> Tensor:
        """The gradient of `mean`: [c, local] -> [rows, local], 0 for rows of no run."""
        if self.is_every_row:
            return grad
        row, run = run_rows(self.start, self.end)
        lengths = (self.end - self.start).to(grad.dtype).unsqueeze(-1)
        return grad.new_zeros(rows, grad.shape[1]).index_copy_(0, row, (grad / lengths).index_select(0, run))


def chunk_probabilities(
    logits: Tensor,
    labels: Tensor,
    runs: Runs,
    vocabulary: Vocabulary,
    *,
    columns: Tensor | None = None,
    temperature: float = 1.0,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Labels' log-probabilities and, per run, mean probabilities of a row-wise softmax over the whole vocabulary.

    logits   [rows, local columns] float32 (torch also float64), contiguous
    labels   [rows] int64, a local column each; negative for a label that is not here
    columns  [chosen] int64, ascending local columns that the means are wanted for; None is all of them
    Returns log-probabilities [rows], 0 for negative labels, and means [c, local or chosen columns], at the
    temperature. Differentiable in logits.

    Collectives: one `vocabulary.maximum` and one `vocabulary.complete` of [rows], and one `complete` backward.
    Torch equivalent: `chunk_probabilities_reference`.

    Bytes moved for 512 rows of Llama-3.1 (128,256 columns), each a chunk, in float32: forward reads the logits twice
    and writes the means, 788 MB; backward reads logits and gradient twice and writes a gradient, 1313 MB. Floor on an
    H100 (3.35 TB/s): 235 µs and 392 µs. With 8,800 chosen columns the logits are read once and gathered from on the
    way: 281 MB and 543 MB, 84 µs and 162 µs. Raises UnavailableError for implementation="triton" where it can't run.
    """
    function: Any = TorchProbabilities
    if takes_triton(implementation, logits):
        from nemo_xtoken.kernels.programs.chunk_probabilities import TritonProbabilities

        function = TritonProbabilities
    return function.apply(logits, labels, runs, vocabulary, columns, temperature)


def chunk_probabilities_reference(
    logits: Tensor,
    labels: Tensor,
    runs: Runs,
    vocabulary: Vocabulary,
    columns: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The first two results of `chunk_probabilities`, by autograd."""
    log_probs = log_softmax(logits, vocabulary, temperature)
    chosen = log_probs if columns is None else log_probs.index_select(1, columns)
    return label_log_probability(log_probs, labels), run_mean(chosen.exp(), runs.start, runs.end)


class TorchProbabilities(torch.autograd.Function):
    """Few passes, in place where nothing is needed again."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        runs: Runs,
        vocabulary: Vocabulary,
        columns: Tensor | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """As `chunk_probabilities`."""
        scaled = accumulated(logits) if temperature == 1 else accumulated(logits) / temperature
        local = scaled.amax(-1) if scaled.shape[1] else scaled.new_full(scaled.shape[:1], -torch.inf)
        maximum = vocabulary.maximum(local.unsqueeze(-1))
        exps = (scaled - torch.where(maximum == -torch.inf, 0.0, maximum).unsqueeze(-1)).exp_()
        total = vocabulary.complete(exps.sum(-1))
        normaliser = maximum + total.log()
        label_log = torch.where(labels >= 0, label_log_probability(scaled, labels) - normaliser, 0.0)
        chosen = exps if columns is None else exps.index_select(1, columns)
        probabilities = chosen * (1 / total).unsqueeze(-1)
        ctx.save_for_backward(None if columns is None else exps, labels, total, columns, probabilities)
        ctx.runs, ctx.vocabulary, ctx.temperature = runs, vocabulary, temperature
        return label_log, runs.mean(probabilities)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        exps, labels, total, columns, probabilities = ctx.saved_tensors
        label_grad = torch.where(labels >= 0, grads[0], 0.0)
        products = ctx.runs.spread(grads[1], len(labels)) * probabilities
        normaliser_grad = ctx.vocabulary.complete(-label_grad - products.sum(-1)).unsqueeze(-1)
        if columns is None:
            gradient = products.addcmul_(probabilities, normaliser_grad)
        else:
            gradient = exps * (normaliser_grad / total.unsqueeze(-1))
            gradient.scatter_add_(1, columns.expand(len(gradient), -1), products)
        if gradient.shape[1]:
            gradient.scatter_add_(1, labels.clamp_min(0).unsqueeze(-1), label_grad.unsqueeze(-1))
        return gradient if ctx.temperature == 1 else gradient.div_(ctx.temperature), None, None, None, None, None
