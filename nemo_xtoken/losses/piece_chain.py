"""P-KL of what follows the first piece of a chunk, by the chain rule.

A student token is a sequence of teacher tokens, its pieces, so the student's distribution over tokens is one over
sequences of pieces. KL between two distributions over sequences is the sum, over the places of a sequence, of KL
between what may come next there. P-KL with the first pieces as W is its first term. The others, along the text as it
is: with the pieces p_1 .. p_k seen, the teacher's next token against

    q(next | p_1 .. p_k) = sum of p_S over tokens whose pieces begin p_1 .. p_k, next / that over those of p_1 .. p_k

and "the token ends here" is one of what may come: the teacher's probability of all that is no further piece. A text of
single digits so says of "201" that 2 comes, then 0 after 2, 1 after 20, and after 201 nothing that the token can go on
with. Where the pieces are one token the two models agree on, nothing is open and there is no term.

The other way round, a teacher's token is a sequence of student tokens. Those that no student token begins with count as
their first piece in the first term (`fold`), and the others of the chunk's student tokens are compared likewise: what
the teacher's one row says of tokens that begin p_1 .. p_k, next, against the student's row after these. Whether the
teacher's token ends where the chunk does is not asked: a student's row after the chunk is compared with the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.losses.divergence import divergence_terms, probability_floor
from nemo_xtoken.losses.fold import Fold
from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.losses.piece_tree import Here, Ids, PieceTree, Steps, columns_of, piece_tree
from nemo_xtoken.losses.vocabulary import Vocabulary, local_maximum
from nemo_xtoken.projection.matrix import ProjectionMatrix


@dataclass(frozen=True, eq=False)
class PieceChain:
    """What the chain of a pair needs here.

    student  tree of the student's tokens, in the teacher's columns that W reaches
    teacher  tree of the teacher's tokens, in columns that W reaches and, behind them, of folded tokens
    fold     what becomes of such teacher logits for the first term and the student's tree
    """

    student: PieceTree
    teacher: PieceTree
    fold: Fold

    @classmethod
    def of(
        cls,
        matrix: ProjectionMatrix,
        student: Ids,
        reached: Ids,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str = "cpu",
    ) -> PieceChain:
        """The chain with those tokens that are here, and folded tokens with the column that they count as.

        student, reached  ascending ids of the student's tokens here, and of the teacher's among the columns of W
        Raises ProjectionError where the projection does not say which pieces the tokens have.
        """
        folded, targets = matrix.folded_tokens()
        assert matrix.pieces is not None
        assert matrix.teacher_pieces is not None
        has_column = np.isin(np.arange(matrix.teacher_vocab_size), np.concatenate([matrix.pieces.first, folded]))
        is_here = np.isin(targets, reached)
        folded, targets = folded[is_here], targets[is_here]
        teacher = np.concatenate([reached, folded])
        students = columns_of(student, matrix.student_vocab_size)
        here = Here(students, columns_of(reached, matrix.teacher_vocab_size), rank, ranks)
        there = Here(columns_of(teacher, matrix.teacher_vocab_size), students, rank, ranks)
        return cls(
            student=piece_tree(matrix.pieces, here, device),
            teacher=piece_tree(matrix.teacher_pieces.only(has_column), there, device),
            fold=Fold.onto(folded, np.searchsorted(reached, targets), len(reached), device),
        )


def chain_sum(
    token_logits: Tensor,
    piece_logits: Tensor,
    steps: Steps,
    tree: PieceTree,
    config: LossConfig,
    vocabulary: Vocabulary,
    *,
    is_students: bool,
) -> Tensor:
    """Partial sum over steps of KL between what may come next, without the factor temperature²: a scalar.

    token_logits  [rows, local columns of the tree's tokens]; only those of tokens below a step's node matter
    piece_logits  [steps, local columns of the other side]: of each step's row
    is_students   whether the tree is of the student's tokens, the pieces the teacher's; else the other way round
    Differentiable in both; a teacher's logits are given detached. Sums are in the logits' precision, float32 or higher.
    Collectives, each of one number per step or bin: one maximum of both sides, one sum of each, and no more backward
    than the reverse of the student's.
    """
    if len(steps.nodes) == 0:
        return token_logits.new_zeros(())
    layout = _Layout.of(steps, tree)
    entries, flat_bins = _token_entries(token_logits, steps, tree, layout)
    if config.temperature != 1:
        entries, piece_logits = entries / config.temperature, piece_logits / config.temperature
    columns = _piece_bins(piece_logits, tree, layout)
    ends = tree.bin_is_end[layout.bins[layout.first]]
    local = torch.stack([
        _largest(entries.detach(), layout.step_of_entry, len(ends)),
        torch.where(ends, local_maximum(piece_logits), _largest(columns.detach(), layout.step, len(ends))),
    ])  # fmt: skip
    token_largest, piece_largest = vocabulary.maximum(local.unsqueeze(-1))
    token_log = _token_log(entries - token_largest[layout.step_of_entry], flat_bins, layout, vocabulary)
    piece_log = _piece_log(piece_logits, columns, piece_largest, ends, layout, vocabulary)
    teacher_log, student_log = (piece_log, token_log) if is_students else (token_log, piece_log)
    terms = divergence_terms(teacher_log, student_log, config.direction)
    return torch.where(tree.bin_counts[layout.bins], terms, 0.0).sum()


@dataclass(frozen=True)
class _Layout:
    """The bins of all steps, one step after another, and the tokens below their nodes.

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


def _token_entries(logits: Tensor, steps: Steps, tree: PieceTree, layout: _Layout) -> tuple[Tensor, Tensor]:
    """Logits of the tokens here that begin with each step's node, and the place of the bin that each belongs to."""
    row = steps.token_rows[layout.step_of_entry]
    place = row * logits.shape[1] + tree.tokens[layout.entries]
    entries = logits.reshape(-1).index_select(0, place)
    flat_bins = layout.first[layout.step_of_entry] + tree.token_bins[layout.entries]
    return entries.to(torch.promote_types(entries.dtype, torch.float32)), flat_bins


def _piece_bins(logits: Tensor, tree: PieceTree, layout: _Layout) -> Tensor:
    """The other side's logits of all bins, -inf for END and for columns that are elsewhere."""
    column = tree.bin_columns[layout.bins]
    if logits.shape[1] == 0:
        return logits.new_full(column.shape, -torch.inf)
    picked = logits.reshape(-1).index_select(0, layout.step * logits.shape[1] + column.clamp_min(0))
    return torch.where(column >= 0, picked, -torch.inf)


def _largest(x: Tensor, owner: Tensor, owners: int) -> Tensor:
    """The largest value of each owner, -inf without any."""
    return x.new_full((owners,), -torch.inf).scatter_reduce(0, owner, x, "amax")


def _token_log(shifted: Tensor, flat_bins: Tensor, layout: _Layout, vocabulary: Vocabulary) -> Tensor:
    """Log of the tokens' probability of each bin, given its node."""
    partial = shifted.new_zeros(len(layout.bins)).index_add(0, flat_bins, shifted.exp())
    masses = vocabulary.complete(partial).clamp_min(probability_floor(shifted.dtype))
    return masses.log() - layout.total(masses).log()[layout.step]


def _piece_log(
    logits: Tensor, columns: Tensor, largest: Tensor, ends: Tensor, layout: _Layout, vocabulary: Vocabulary
) -> Tensor:
    """Log of the other side's probability of each bin: among all columns where a token may end, else among the bins."""
    # Where no token ends the bins' own largest is subtracted, and the whole row, which may be larger, is not asked for.
    row_shift = torch.where(ends, largest, torch.maximum(largest, local_maximum(logits)))
    rows = (logits - row_shift.unsqueeze(-1)).exp().sum(-1)
    both = vocabulary.complete(torch.cat([rows, (columns - largest[layout.step]).exp()]))
    rows, masses = both[: len(rows)], both[len(rows) :]
    pieces = layout.total(masses)
    masses = masses / torch.where(ends, rows, pieces)[layout.step]
    rest = ((rows - pieces) / rows).clamp_min(0)
    at_end = layout.first[ends]
    masses = masses.index_copy(0, at_end, rest[ends])
    return masses.clamp_min(probability_floor(masses.dtype)).log()
