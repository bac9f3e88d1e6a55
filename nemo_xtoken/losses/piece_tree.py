"""The tree of one side's tokens: what may follow each beginning of a token, as arrays that losses index.

A side's tokens are made of pieces, tokens of the other side. A node is a beginning of some tokens, one piece or more.
What may follow it is a *bin*: another piece, or that the token ends. Only nodes of two bins or more are kept; elsewhere
nothing is open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.projection.piece_table import PieceTable
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows

Ids = NDArray[np.int64]
END = -1
"""The bin of tokens that end at a node, or go on with a piece that is no token's first: those have no column."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Places within chunks where something is open, [steps] int64 each.

    chunks      number of the chunk
    token_rows  row that predicts the chunk's token
    piece_rows  row of the other side, which predicts what follows the pieces so far
    nodes       these pieces
    """

    chunks: Tensor
    token_rows: Tensor
    piece_rows: Tensor
    nodes: Tensor

    def parts(self, most: int) -> Iterator[Steps]:
        """The same steps, at most so many at a time."""
        split = (getattr(self, field.name).split(most) for field in fields(self))
        yield from (Steps(*tensors) for tensors in zip(*split, strict=True))


@dataclass(frozen=True, eq=False)
class PieceTree:
    """The tree, with the tokens and columns that are here; int64 unless said.

    piece_starts, piece_ids       [V + 1], [pieces]: the pieces of each token
    path_starts                   [V + 1]: the nodes of each token, shortest first
    path_nodes, path_lengths      [in all]: a node, and the number of its pieces
    bin_starts                    [nodes + 1]: the bins of each node; END is a node's first, where it has that
    bin_columns                   [bins] the piece's column here, -1 where it is elsewhere and for END
    bin_is_end, bin_counts        [bins] bool: END; whether its part of the loss is counted here
    token_starts                  [nodes + 1]: the tokens here that begin with each node
    tokens, token_bins            [in all]: a token's column here, and its bin among those of the node
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

    def steps(self, chunks: ChunkRows, labels: Tensor, piece_labels: Tensor, followed: Tensor | None = None) -> Steps:
        """Where something is open in chunks of one token of this side whose tokens of the other side are its pieces.

        The tree's side is the chunks' student. Rows count in labels [rows] and, of the other side, piece_labels [rows].
        The last step of a chunk asks whether its token ends there: it is at teacher_end, the row after the chunk's, and
        taken where `followed` [c] bool; None is nowhere.
        """
        of_token, token = self._by_pieces(chunks, labels, piece_labels)
        followed = torch.zeros_like(of_token) if followed is None else followed
        starts = torch.where(of_token, self.path_starts[token], 0)
        place, chunk = run_rows(starts, torch.where(of_token, self.path_starts[token + 1], 0))
        length = self.path_lengths[place]
        is_taken = (chunks.teacher_start[chunk] + length < chunks.teacher_end[chunk]) | followed[chunk]
        place, chunk, length = place[is_taken], chunk[is_taken], length[is_taken]
        return Steps(
            chunks=chunk,
            token_rows=chunks.student_start[chunk],
            piece_rows=chunks.teacher_start[chunk] + length,
            nodes=self.path_nodes[place],
        )

    def followed(self, chunks: ChunkRows, labels: Tensor, piece_labels: Tensor) -> Tensor:
        """Chunks whose last step is open, and after which the other side's text goes on: [c] bool."""
        last = chunks.teacher_end.clamp_max(len(piece_labels) - 1) if len(piece_labels) else chunks.teacher_end
        goes_on = chunks.teacher_end < len(piece_labels)
        if len(piece_labels):
            goes_on &= piece_labels[last] != IGNORED_LABEL
        steps = self.steps(chunks, labels, piece_labels, goes_on)
        at_end = steps.chunks[steps.piece_rows == chunks.teacher_end[steps.chunks]]
        return torch.zeros_like(goes_on).index_fill(0, at_end, True)

    def _by_pieces(self, chunks: ChunkRows, labels: Tensor, piece_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a chunk is one token in its own pieces, [c] bool, and that token, 0 elsewhere."""
        label = labels[chunks.student_start]
        is_one = (chunks.student_end - chunks.student_start == 1) & (label >= 0)
        is_one &= label < len(self.piece_starts) - 1
        token = torch.where(is_one, label, 0)
        start, end = self.piece_starts[token], self.piece_starts[token + 1]
        is_one &= end - start == chunks.teacher_end - chunks.teacher_start
        pieces, chunk = run_rows(torch.where(is_one, start, 0), torch.where(is_one, end, 0))
        rows, _ = run_rows(torch.where(is_one, chunks.teacher_start, 0), torch.where(is_one, chunks.teacher_end, 0))
        differs = chunk[self.piece_ids[pieces] != piece_labels[rows]]
        return is_one.index_fill(0, differs, False), token


def mirrored(chunks: ChunkRows) -> ChunkRows:
    """The chunks with the sides exchanged."""
    return replace(
        chunks,
        student_start=chunks.teacher_start,
        student_end=chunks.teacher_end,
        teacher_start=chunks.student_start,
        teacher_end=chunks.student_end,
    )


@dataclass(frozen=True)
class Here:
    """What of both vocabularies is in one place.

    tokens       [V] the column of each token of the tree's side, -1 where it is elsewhere
    pieces       [V'] the column of each token of the other side, likewise
    rank, ranks  END bins are dealt out over the ranks
    """

    tokens: Ids
    pieces: Ids
    rank: int = 0
    ranks: int = 1


def columns_of(ids: Ids, vocab_size: int) -> Ids:
    """[V] the place of each id among `ids`, -1 for those that are none of them."""
    columns = np.full(vocab_size, -1)
    columns[ids] = np.arange(len(ids))
    return columns


def piece_tree(pieces: PieceTable, here: Here, device: torch.device | str = "cpu") -> PieceTree:
    """The tree of a side's pieces, with those tokens and columns that are here."""
    tokens, lengths, nodes, outcomes = _beginnings(pieces)
    node, bins, token_bins = _open_nodes(nodes, outcomes)
    kept = node >= 0
    tokens, lengths, node, token_bins = tokens[kept], lengths[kept], node[kept], token_bins[kept]
    by_token, by_node = np.lexsort((lengths, tokens)), np.lexsort((tokens, node))
    by_node = by_node[here.tokens[tokens[by_node]] >= 0]
    number = bins.node[-1] + 1 if len(bins.node) else 0
    is_end = bins.outcome == END
    columns = np.where(is_end, -1, here.pieces[bins.outcome])
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
        "tokens": here.tokens[tokens[by_node]],
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
