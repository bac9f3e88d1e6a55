"""What a page tells of prepared data: its chunks by kind, the lengths of its documents, its fill, and examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken import tokenizers
from nemo_xtoken.data.aligned import AlignedDocument, AlignedTeacher
from nemo_xtoken.data.chunk_counts import ChunkCounts
from nemo_xtoken.data.manifest import Side
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.statistics import Fill, measure_fill
from nemo_xtoken.errors import DataError, TokenizerError, XTokenError
from nemo_xtoken.report.aligned_tokens import AlignedSentence, ChunkCell, Token, kind_of, visible
from nemo_xtoken.report.bars import BarChart, bar_chart
from nemo_xtoken.report.curves import style_of
from nemo_xtoken.tokenizers import Tokenizer

COUNTED = 20_000
"""Documents whose chunks are counted; of larger data as many, evenly spaced."""

EXAMPLES, EXAMPLE_CHUNKS = 3, 60
TeacherLengths = int | Mapping[str, int]
MULTIPLE = 32
SEQUENCE_LENGTHS = (512, 1024, 2048, 4096, 8192)
KINDS = (
    ("one to one", "one_to_one"),
    ("one student, several teacher tokens", "one_to_many"),
    ("several student tokens, one teacher", "many_to_one"),
    ("several on both sides", "many_to_many"),
    ("inexact, not in the loss", "inexact"),
)


@dataclass(frozen=True)
class TeacherView:
    """The chunks with one teacher: counts, their kinds as bars, and documents cut twice; `problem` where those can't
    be shown."""

    name: str
    spec: str
    counts: ChunkCounts
    kinds: BarChart
    examples: tuple[AlignedSentence, ...]
    problem: str


def sides_of(prepared: PreparedData) -> list[tuple[str, str]]:
    """(name, style) of the student and of each teacher."""
    names = prepared.manifest.teacher_names
    return [("student", style_of(0)), *((names[i], style_of(i + 1)) for i in range(len(names)))]


def counted_documents(prepared: PreparedData) -> NDArray[np.int64]:
    """The numbers of the documents that are counted."""
    return np.unique(np.linspace(0, len(prepared) - 1, min(len(prepared), COUNTED)).astype(np.int64))


def view_teacher(prepared: PreparedData, number: int) -> TeacherView:
    """Look at the chunks with one teacher, by its number."""
    side = prepared.manifest.teachers[number]
    counts = ChunkCounts()
    for i in counted_documents(prepared).tolist():
        counts += _counts(prepared, number, i)
    total = max(counts.chunks, 1)
    rows = [(label, [getattr(counts, name) / total]) for label, name in KINDS]
    kinds = bar_chart(
        f"Chunks by kind, {side.name}", "share of all chunks", [(side.name, style_of(number + 1))], rows, _share
    )
    try:
        examples, problem = _examples(prepared, number), ""
    except XTokenError as error:
        examples, problem = (), str(error)
    return TeacherView(side.name, side.spec, counts, kinds, examples, problem)


def _counts(prepared: PreparedData, number: int, i: int) -> ChunkCounts:
    teacher = prepared.teachers[number]
    aligned = AlignedTeacher(teacher.tokens(i), teacher.chunk_table(i))
    return ChunkCounts.of(AlignedDocument(prepared.student_tokens(i), (aligned,), 0, 0, 0))


def length_bars(prepared: PreparedData) -> BarChart:
    """Documents by their number of tokens, in ranges that double."""
    lengths = [prepared.student_lengths, *(teacher.lengths for teacher in prepared.teachers)]
    exponents = [np.log2(np.maximum(side, 1)).astype(np.int64) for side in lengths]
    first, last = min(int(e.min()) for e in exponents), max(int(e.max()) for e in exponents)
    rows = [
        (f"{2**e:,} to {2 ** (e + 1) - 1:,}", [float(np.count_nonzero(side == e)) for side in exponents])
        for e in range(first, last + 1)
    ]
    return bar_chart(
        "Documents by their length", "tokens, with bos and eos", sides_of(prepared), rows, lambda n: f"{n:,.0f}"
    )


def default_lengths(prepared: PreparedData) -> list[tuple[int, TeacherLengths]]:
    """Several lengths, each for both sides, and where a teacher needs more tokens for the same text than the student
    once more with as many more."""
    found: list[tuple[int, TeacherLengths]] = []
    names = prepared.manifest.teacher_names
    ratios = [float(teacher.lengths.sum() / prepared.student_lengths.sum()) for teacher in prepared.teachers]
    for length in SEQUENCE_LENGTHS:
        fitting = {name: rounded_up(length * ratio) for name, ratio in zip(names, ratios, strict=True)}
        found.append((length, length))
        found += [(length, fitting)] if any(other != length for other in fitting.values()) else []
    return found


def rounded_up(length: float) -> int:
    """A length that kernels like, not below this one."""
    return -(-math.ceil(length) // MULTIPLE) * MULTIPLE


def fills(prepared: PreparedData, lengths: Sequence[tuple[int, TeacherLengths]]) -> list[Fill]:
    """How the documents pack into sequences of each (student, teacher) length in which something fits."""
    found: list[Fill] = []
    for student, teacher in lengths:
        try:
            found.append(measure_fill(prepared, student, teacher))
        except DataError:
            continue
    return found


def _examples(prepared: PreparedData, number: int) -> tuple[AlignedSentence, ...]:
    """The beginnings of some documents, evenly spaced, as both tokenizers have cut them."""
    manifest = prepared.manifest
    student, teacher = _load(manifest.student), _load(manifest.teachers[number])
    places = np.unique(np.linspace(0, len(prepared) - 1, min(len(prepared), EXAMPLES)).astype(np.int64))
    return tuple(_example(prepared, number, i, student, teacher) for i in places.tolist())


def _example(prepared: PreparedData, number: int, i: int, student: Tokenizer, teacher: Tokenizer) -> AlignedSentence:
    document = prepared.document(i, number)
    cells: list[ChunkCell] = []
    for c in range(min(len(document.chunks), EXAMPLE_CHUNKS)):
        chunk = document.chunks
        left = _tokens(student, document.student_tokens[chunk.student_start[c] : chunk.student_end[c]].tolist())
        right = _tokens(teacher, document.teacher_tokens[chunk.teacher_start[c] : chunk.teacher_end[c]].tolist())
        cells.append(ChunkCell(left, right, kind_of(left, right, bool(chunk.exact[c]))))
    return AlignedSentence(f"document {i + 1:,}", tuple(cells))


def _tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Token, ...]:
    return tuple(Token(tokenizer.special_roles.get(i) or visible(tokenizer.token_bytes(i)), i) for i in ids)


def _load(side: Side) -> Tokenizer:
    tokenizer = tokenizers.load(side.spec)
    if tokenizer.fingerprint != side.fingerprint:
        raise TokenizerError(f"{side.spec} is not the tokenizer any more that prepared the data")
    return tokenizer


def _share(value: float) -> str:
    return "<0.01 %" if 0 < value < 0.0001 else f"{100 * value:.2f} %"


def open_data(path: Path) -> PreparedData:
    """Open prepared data that has documents. Raises DataError."""
    prepared = PreparedData.open(path)
    if not len(prepared):
        raise DataError(f"expected documents in {path}, got none; prepare data with text in it")
    return prepared
