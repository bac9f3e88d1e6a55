"""A text as both tokenizers cut it, as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from nemo_xtoken.report.aligned_tokens import align_sentence
from nemo_xtoken.report.html import template, write_page
from nemo_xtoken.tokenizers import Tokenizer


def write_alignment(path: Path, text: str, student: Tokenizer, teacher: Tokenizer) -> Path:
    """Write the page and return its path."""
    page = template("alignment.html.j2").render(
        sentence=align_sentence(text, student, teacher), student_spec=student.spec, teacher_spec=teacher.spec
    )
    return write_page(path, page)
