"""How two tokenizers meet: what the student's tokens find in the teacher, a sentence cut twice, a corner of W."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_xtoken.projection import Audit, ProjectionMatrix, audit
from nemo_xtoken.report.aligned_tokens import AlignedSentence, align_sentence
from nemo_xtoken.report.corner import Corner, corner
from nemo_xtoken.tokenizers import Tokenizer

DEFAULT_SENTENCE = "In 2024 the bakery sold 1288 loaves at €3.75 each, 201 more than the year before."

BETA = "Beta, the first piece's weight before a row is made to sum to 1"
GAMMA = "Gamma, each further piece's share of the weight before it"


@dataclass(frozen=True)
class Pair:
    """The coverage of the student's token classes, a sentence, and a corner of W, with W's own facts by name."""

    student_spec: str
    teacher_spec: str
    audit: Audit
    sentence: AlignedSentence
    corner: Corner
    facts: tuple[tuple[str, str], ...]


def load_pair(projection: Path, sentence: str | None = None) -> Pair:
    """Read W and both its tokenizers. Raises ProjectionError or TokenizerError where one can't be read."""
    matrix = ProjectionMatrix.load(projection)
    student, teacher = matrix.load_pair()
    return make_pair(matrix, student, teacher, audit(matrix, student, teacher), sentence)


def make_pair(
    matrix: ProjectionMatrix,
    student: Tokenizer,
    teacher: Tokenizer,
    audited: Audit,
    sentence: str | None = None,
) -> Pair:
    """Look at W between its two tokenizers, with its audit."""
    text = sentence or DEFAULT_SENTENCE
    return Pair(
        student_spec=student.spec,
        teacher_spec=teacher.spec,
        audit=audited,
        sentence=align_sentence(text, student, teacher),
        corner=corner(matrix, student, teacher, text),
        facts=facts(matrix),
    )


def facts(matrix: ProjectionMatrix) -> tuple[tuple[str, str], ...]:
    """The size of W, and what it was built with, as (name, value)."""
    rows, width = matrix.indices.shape
    entries = (matrix.indices >= 0).sum(axis=1)
    several = int((entries > 1).sum())
    built = [(name, value) for name, value in ((BETA, matrix.beta), (GAMMA, matrix.gamma)) if value is not None]
    return (
        ("Student tokens, rows", f"{rows:,}"),
        ("Teacher tokens, columns", f"{matrix.teacher_vocab_size:,}"),
        ("Entries", f"{int(entries.sum()):,}"),
        ("Rows with several entries", f"{several:,}"),
        ("Most entries of a row", f"{int(entries.max(initial=0))} of at most {width}"),
        *((name, f"{value:g}") for name, value in built),
        ("Entries for teacher tokens that no row reached", "yes" if matrix.reverse_pass else "no"),
    )
