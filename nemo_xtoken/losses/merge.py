"""From the predictors of a chunk to one distribution per chunk (`merge`, method of arXiv 2605.21699).

`mean`  arithmetic mean of the student's probabilities; mean of the teacher's log-probabilities
`first` the first predictor's distribution times the probability of the tokens that really follow inside the chunk
`last`  the last predictor's distribution times the probability of the tokens before it inside the chunk
For a chunk of one row the three are the same. `first` and `last` do not sum to 1 over the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.config import Merge


def run_rows(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of all runs [start, end) one after another, and the run that each belongs to: ([total], [total]) int64."""
    lengths = end - start
    run = torch.repeat_interleave(torch.arange(len(start), device=start.device), lengths)
    offset = torch.arange(len(run), device=start.device) - (lengths.cumsum(0) - lengths)[run]
    return start[run] + offset, run


def run_sum(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Sum of the rows of each run: x [rows, ...] -> [c, ...]."""
    first = x.index_select(0, start)
    rows, run = run_rows(start + 1, end)
    return first if len(rows) == 0 else first.index_add(0, run, x.index_select(0, rows))


def run_mean(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean of the rows of each run: x [rows, V] -> [c, V]."""
    return run_sum(x, start, end) / (end - start).to(x.dtype).unsqueeze(-1)


def representative_row(start: Tensor, end: Tensor, how: Merge) -> Tensor:
    """The row whose distribution `first` or `last` takes, [c]."""
    return start if how == "first" else end - 1


def observed_log_probability(label_log_probs: Tensor, start: Tensor, end: Tensor, how: Merge) -> Tensor:
    """Log-probability of the chunk's real tokens at all rows but the representative one: [rows] -> [c]."""
    return run_sum(label_log_probs, start, end) - label_log_probs[representative_row(start, end, how)]


def label_log_probability(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the token that really follows each row; rows with a negative label are 0."""
    if log_probs.shape[-1] == 0:
        return log_probs.sum(-1)
    known = labels >= 0
    picked = log_probs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(known, picked, torch.zeros_like(picked))
