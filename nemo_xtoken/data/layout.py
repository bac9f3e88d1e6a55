"""Names of the files of prepared data, and the columns of its tables."""

import re

STUDENT = "student"
DOCUMENTS = "documents.npy"
MANIFEST = "manifest.json"

CHUNK_COLUMNS = 5
"""student_start, student_end, teacher_start, teacher_end in tokens of the document, and exact (0 or 1)."""

DOCUMENT_COLUMNS = 3
"""UTF-8 bytes of the document; its first student token that is learnt, 0 without a prompt; UTF-8 bytes learnt."""

_OURS = re.compile(r"(student|(teacher|chunks)(-\d+)?)\.(bin|idx)")


def teacher_file(number: int) -> str:
    """The indexed dataset of a teacher's tokens, by the teacher's number from 0."""
    return f"teacher{_suffix(number)}"


def chunks_file(number: int) -> str:
    """The indexed dataset of the chunks between the student and a teacher."""
    return f"chunks{_suffix(number)}"


def is_prepared_file(name: str) -> bool:
    """Whether a file of this name belongs to prepared data."""
    return name in (DOCUMENTS, MANIFEST) or _OURS.fullmatch(name) is not None


def _suffix(number: int) -> str:
    return f"-{number + 1}" if number else ""
