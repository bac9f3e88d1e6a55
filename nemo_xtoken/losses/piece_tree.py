"""The tree of the student tokens' pieces: what may follow each beginning of a token, as arrays that losses index.

A node is a beginning of some student tokens, one teacher token or more. What may follow it is a *bin*: another piece,
or that the token ends. Only nodes of two bins or more are kept; elsewhere nothing is open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.piece_table import PieceTable
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows

Ids = NDArray[np.int64]
END = -1
"""The bin of tokens that end at a node, or go on with a piece that is no token's first: of those W has no column."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Places within chunks where something is open, [steps] int64 each.

    chunks        number of the chunk
    student_rows  row that predicts the chunk's token
    teacher_rows  row that predicts what follows the pieces so far
    nodes         these pieces
    """

    chunks: Tensor
    student_rows: Tensor
    teacher_rows: Tensor
    nodes: Tensor

    def parts(self, most: int) -> Iterator[Steps]:
        """The same steps, at most so many at a time."""
        split = (getattr(self, field.name).split(most) for field in fields(self))
        yield from (Steps(*tensors) for tensors in zip(*split, strict=True))


@dataclass(frozen=True, eq=False)
class PieceTree:
    """The tree, with the tokens and columns that are here; int64 unless said.

    piece_starts, piece_ids       [V_S + 1], [pieces]: the pieces of each student token
    path_starts                   [V_S + 1]: the nodes of each student token, shortest first
    path_nodes, path_lengths      [in all]: a node, and the number of its pieces
    bin_starts                    [nodes + 1]: the bins of each node; END is a node's first, where it has that
    bin_columns                   [bins] the teacher's column here, -1 where it is elsewhere and for END
    bin_is_end, bin_counts        [bins] bool: END; whether its part of the loss is counted here
    token_starts                  [nodes + 1]: the student tokens here that begin with each node
    tokens, token_bins            [in all]: a student's column here, and its bin among those of the node
    """

    piece_starts: Tensor
    piece_ids: Tensor
    path_starts: Tensor
    path_nodes: Tensor
    path_lengths: Tensor
    bin_starts: Tensor
    bin_columns: Tensor
    bin_is_end: Tensor
    bin_counts: Tensor
    token_starts: Tensor
    tokens: Tensor
    token_bins: Tensor

    def steps(self, chunks: ChunkRows, student_labels: Tensor, teacher_labels: Tensor, followed: Tensor) -> Steps:
        """Where something is open in chunks of one student token whose teacher tokens are its pieces.

        Rows count in student_labels [rows] and teacher_labels [rows]. The last step of a chunk asks whether its token
        ends there: it is at teacher_end, the row after the chunk's, and taken where `followed` [c] bool.
        """
        of_token, token = self._by_pieces(chunks, student_labels, teacher_labels)
        starts = torch.where(of_token, self.path_starts[token], 0)
        place, chunk = run_rows(starts, torch.where(of_token, self.path_starts[token + 1], 0))
        length = self.path_lengths[place]
        is_taken = (chunks.teacher_start[chunk] + length < chunks.teacher_end[chunk]) | followed[chunk]
        place, chunk, length = place[is_taken], chunk[is_taken], length[is_taken]
        return Steps(
            chunks=chunk,
            student_rows=chunks.student_start[chunk],
            teacher_rows=chunks.teacher_start[chunk] + length,
            nodes=self.path_nodes[place],
        )

    def followed(self, chunks: ChunkRows, student_labels: Tensor, teacher_labels: Tensor) -> Tensor:
        """Chunks whose last step is open, and after which the teacher's text goes on: [c] bool."""
        last = chunks.teacher_end.clamp_max(len(teacher_labels) - 1) if len(teacher_labels) else chunks.teacher_end
        goes_on = chunks.teacher_end < len(teacher_labels)
        if len(teacher_labels):
            goes_on &= teacher_labels[last] != IGNORED_LABEL
        steps = self.steps(chunks, student_labels, teacher_labels, goes_on)
        at_end = steps.chunks[steps.teacher_rows == chunks.teacher_end[steps.chunks]]
        return torch.zeros_like(goes_on).index_fill(0, at_end, True)

    def _by_pieces(self, chunks: ChunkRows, student_labels: Tensor, teacher_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a chunk is one student token in its own pieces, [c] bool, and that token, 0 elsewhere."""
        label = student_labels[chunks.student_start]
        is_one = (chunks.student_end - chunks.student_start == 1) & (label >= 0)
        is_one &= label < len(self.piece_starts) - 1
        token = torch.where(is_one, label, 0)
        start, end = self.piece_starts[token], self.piece_starts[token + 1]
        is_one &= end - start == chunks.teacher_end - chunks.teacher_start
        pieces, chunk = run_rows(torch.where(is_one, start, 0), torch.where(is_one, end, 0))
        rows, _ = run_rows(torch.where(is_one, chunks.teacher_start, 0), torch.where(is_one, chunks.teacher_end, 0))
        differs = chunk[self.piece_ids[pieces] != teacher_labels[rows]]
        return is_one.index_fill(0, differs, False), token


@dataclass(frozen=True)
class Here:
    """What of a pair is in one place.

    first_token, end_token  range of the student tokens
    columns                 [owned] ascending teacher ids
    rank, ranks             END bins are dealt out over the ranks
    """

    first_token: int
    end_token: int
    columns: Ids
    rank: int = 0
    ranks: int = 1


def piece_tree(matrix: ProjectionMatrix, here: Here, device: torch.device | str = "cpu") -> PieceTree:
    """The tree of a projection's pieces, with those tokens and columns that are here.

    Raises ProjectionError where the projection has no pieces.
    """
    pieces = matrix.first_pieces().pieces
    assert pieces is not None
    tokens, lengths, nodes, outcomes = _beginnings(pieces)
    node, bins, token_bins = _open_nodes(nodes, outcomes)
    kept = node >= 0
    tokens, lengths, node, token_bins = tokens[kept], lengths[kept], node[kept], token_bins[kept]
    by_token, by_node = np.lexsort((lengths, tokens)), np.lexsort((tokens, node))
    by_node = by_node[(tokens[by_node] >= here.first_token) & (tokens[by_node] < here.end_token)]
    number = bins.node[-1] + 1 if len(bins.node) else 0
    columns = _local(here.columns, bins.outcome)
    is_end = bins.outcome == END
    counts = np.where(is_end, bins.node % here.ranks == here.rank, columns >= 0)
    arrays = {
        "piece_starts": np.concatenate([[0], pieces.ends]),
        "piece_ids": pieces.ids,
        "path_starts": _starts(tokens, len(pieces.ends)),
        "path_nodes": node[by_token],
        "path_lengths": lengths[by_token],
        "bin_starts": _starts(bins.node, number),
        "bin_columns": columns,
        "token_starts": _starts(node[by_node], number),
        "tokens": tokens[by_node] - here.first_token,
        "token_bins": token_bins[by_node],
    }
    flags = {"bin_is_end": is_end, "bin_counts": counts}
    return PieceTree(
        **{name: torch.as_tensor(array.astype(np.int64), device=device) for name, array in arrays.items()},
        **{name: torch.as_tensor(array, device=device) for name, array in flags.items()},
    )


@dataclass(frozen=True)
class _Bins:
    """node, outcome  [bins] int64, by node and then by outcome."""

    node: Ids
    outcome: Ids


def _beginnings(pieces: PieceTable) -> tuple[Ids, Ids, Ids, Ids]:
    """Every beginning of every token: the token, the number of pieces, a number of the node, what follows; [all]."""
    starts, lengths = pieces.starts.astype(np.int64), pieces.lengths.astype(np.int64)
    is_first = np.zeros(int(pieces.ids.max(initial=END)) + 1, np.bool_)
    is_first[pieces.ids[starts[lengths > 0]]] = True
    tokens, node = np.flatnonzero(lengths), np.zeros(len(pieces.ends), np.int64)
    levels: list[tuple[Ids, Ids, Ids, Ids]] = []
    first_number = 0
    for length in range(1, int(lengths.max(initial=0)) + 1):
        tokens = tokens[lengths[tokens] >= length]
        last = pieces.ids[starts[tokens] + length - 1]
        _, number = np.unique(np.stack([node[tokens], last]), axis=1, return_inverse=True)
        node[tokens] = number.reshape(-1) + first_number
        goes_on = lengths[tokens] > length
        following = pieces.ids[np.where(goes_on, starts[tokens] + length, 0)].astype(np.int64)
        outcome = np.where(goes_on & is_first[following], following, END)
        levels.append((tokens, np.full(len(tokens), length), node[tokens], outcome))
        first_number = int(node[tokens].max()) + 1
    empty = np.zeros(0, np.int64)
    return tuple(np.concatenate([empty, *parts]) for parts in zip(*levels, strict=True)) if levels else (empty,) * 4  # pyright: ignore[reportReturnType]


def _open_nodes(nodes: Ids, outcomes: Ids) -> tuple[Ids, _Bins, Ids]:
    """Nodes of two bins or more, numbered anew: each beginning's node, -1 for none, the bins, each beginning's bin."""
    (bin_node, outcome), place = np.unique(np.stack([nodes, outcomes]), axis=1, return_inverse=True)
    number_of_bins = np.bincount(bin_node, minlength=1)
    is_open = number_of_bins > 1
    renumbered = np.where(is_open, is_open.cumsum() - 1, -1)
    first = number_of_bins.cumsum() - number_of_bins
    kept = is_open[bin_node]
    bins = _Bins(renumbered[bin_node[kept]], outcome[kept])
    return renumbered[nodes], bins, place.reshape(-1) - first[nodes]


def _starts(owners: Ids, number: int) -> Ids:
    """Where the items of each owner start, [number + 1]; the items lie in the order of their owners."""
    return np.concatenate([[0], np.bincount(owners, minlength=number).cumsum()])


def _local(columns: Ids, outcomes: Ids) -> Ids:
    """Index of each outcome in the ascending columns, -1 where it is none of them."""
    if len(columns) == 0:
        return np.full(len(outcomes), -1)
    place = np.searchsorted(columns, outcomes).clip(max=len(columns) - 1)
    return np.where(columns[place] == outcomes, place, -1)
