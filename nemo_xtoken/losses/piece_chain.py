"""P-KL of what follows the first piece of a chunk, by the chain rule.

A student token is a sequence of teacher tokens, its pieces, so the student's distribution over tokens is one over
sequences of pieces. KL between two distributions over sequences is the sum, over the places of a sequence, of KL
between what may come next there. P-KL with the first pieces as W is its first term. The others, along the text as it
is: with the pieces p_1 .. p_k seen, the teacher's next token against

    q(next | p_1 .. p_k) = sum of p_S over tokens whose pieces begin p_1 .. p_k, next / that over those of p_1 .. p_k

and "the token ends here" is one of what may come: the teacher's probability of all that is no further piece. A text of
single digits so says of "201" that 2 comes, then 0 after 2, 1 after 20, and after 201 nothing that the token can go on
with. Where the pieces are one token the two models agree on, nothing is open and there is no term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.losses.divergence import divergence_terms, probability_floor
from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.losses.piece_tree import PieceTree, Steps
from nemo_xtoken.losses.vocabulary import Vocabulary, local_maximum


def chain_sum(
    student_logits: Tensor,
    teacher_logits: Tensor,
    steps: Steps,
    tree: PieceTree,
    config: LossConfig,
    vocabulary: Vocabulary,
) -> Tensor:
    """Partial sum over steps of KL between what may come next, without the factor temperature²: a scalar.

    student_logits  [rows, local student columns], differentiable; only those of tokens below a step's node matter
    teacher_logits  [steps, local teacher columns]: of each step's row, all columns that W reaches
    Sums are in the logits' precision, float32 or higher. Collectives, each of one number per step or bin: one maximum
    of both sides, one sum of the teacher's and one of the student's, and no more backward than that one's reverse.
    """
    if len(steps.nodes) == 0:
        return student_logits.new_zeros(())
    layout = _Layout.of(steps, tree)
    scale = 1 / config.temperature
    entries, flat_bins = _student_entries(student_logits, steps, tree, layout)
    entries, teacher_logits = entries * scale, teacher_logits.detach() * scale
    columns = _teacher_bins(teacher_logits, tree, layout)
    ends = tree.bin_is_end[layout.bins[layout.first]]
    local = torch.stack([
        _largest(entries.detach(), layout.step_of_entry, len(ends)),
        torch.where(ends, local_maximum(teacher_logits), _largest(columns, layout.step, len(ends))),
    ])  # fmt: skip
    student_largest, teacher_largest = vocabulary.maximum(local.unsqueeze(-1))
    student_log = _student_log(entries - student_largest[layout.step_of_entry], flat_bins, layout, vocabulary)
    with torch.no_grad():
        teacher_log = _teacher_log(teacher_logits, columns, teacher_largest, ends, layout, vocabulary)
    terms = divergence_terms(teacher_log, student_log, config.direction)
    return torch.where(tree.bin_counts[layout.bins], terms, 0.0).sum()


@dataclass(frozen=True)
class _Layout:
    """The bins of all steps, one step after another, and the student's entries.

    bins, step     [bins of all steps] the bin of the tree, and whose it is
    first          [steps] the place of each step's first bin
    entries, step_of_entry  [tokens of all steps] the place in the tree's `tokens`, and whose it is
    """

    bins: Tensor
    step: Tensor
    first: Tensor
    entries: Tensor
    step_of_entry: Tensor

    @classmethod
    def of(cls, steps: Steps, tree: PieceTree) -> _Layout:
        starts, ends = tree.bin_starts[steps.nodes], tree.bin_starts[steps.nodes + 1]
        bins, step = run_rows(starts, ends)
        lengths = ends - starts
        entries, owner = run_rows(tree.token_starts[steps.nodes], tree.token_starts[steps.nodes + 1])
        return cls(bins, step, lengths.cumsum(0) - lengths, entries, owner)

    def total(self, x: Tensor) -> Tensor:
        """Sum over each step's bins: [bins of all steps] -> [steps]."""
        return x.new_zeros(len(self.first)).index_add(0, self.step, x)


def _student_entries(logits: Tensor, steps: Steps, tree: PieceTree, layout: _Layout) -> tuple[Tensor, Tensor]:
    """Logits of the tokens here that begin with each step's node, and the place of the bin that each belongs to."""
    row = steps.student_rows[layout.step_of_entry]
    place = row * logits.shape[1] + tree.tokens[layout.entries]
    entries = logits.reshape(-1).index_select(0, place)
    flat_bins = layout.first[layout.step_of_entry] + tree.token_bins[layout.entries]
    return entries.to(torch.promote_types(entries.dtype, torch.float32)), flat_bins


def _teacher_bins(logits: Tensor, tree: PieceTree, layout: _Layout) -> Tensor:
    """The teacher's logits of all bins, -inf for END and for columns that are elsewhere."""
    column = tree.bin_columns[layout.bins]
    if logits.shape[1] == 0:
        return logits.new_full(column.shape, -torch.inf)
    picked = logits.reshape(-1).index_select(0, layout.step * logits.shape[1] + column.clamp_min(0))
    return torch.where(column >= 0, picked, -torch.inf)


def _largest(x: Tensor, owner: Tensor, owners: int) -> Tensor:
    """The largest value of each owner, -inf without any."""
    return x.new_full((owners,), -torch.inf).scatter_reduce(0, owner, x, "amax")


def _student_log(shifted: Tensor, flat_bins: Tensor, layout: _Layout, vocabulary: Vocabulary) -> Tensor:
    """Log of the student's probability of each bin, given its node."""
    partial = shifted.new_zeros(len(layout.bins)).index_add(0, flat_bins, shifted.exp())
    masses = vocabulary.complete(partial).clamp_min(probability_floor(shifted.dtype))
    return masses.log() - layout.total(masses).log()[layout.step]


def _teacher_log(
    logits: Tensor, columns: Tensor, largest: Tensor, ends: Tensor, layout: _Layout, vocabulary: Vocabulary
) -> Tensor:
    """Log of the teacher's probability of each bin: among all columns where a token may end, else among the bins."""
    # Where no token ends the bins' own largest is subtracted, and the whole row, which may be larger, is not asked for.
    row_shift = torch.where(ends, largest, torch.maximum(largest, local_maximum(logits)))
    rows = (logits - row_shift.unsqueeze(-1)).exp().sum(-1)
    both = vocabulary.complete(torch.cat([rows, (columns - largest[layout.step]).exp()]))
    rows, masses = both[: len(rows)], both[len(rows) :]
    pieces = layout.total(masses)
    masses = masses / torch.where(ends, rows, pieces)[layout.step]
    rest = (1 - pieces / rows).clamp_min(0)
    at_end = layout.first[ends]
    masses = masses.index_copy(0, at_end, rest[ends])
    return masses.clamp_min(probability_floor(masses.dtype)).log()
