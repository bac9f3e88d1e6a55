"""A pair of tokenizers as one self-contained HTML page: coverage, W, examples, and the loss to take."""

from __future__ import annotations

from pathlib import Path, PurePath

from nemo_xtoken.projection import Audit, ClassCoverage
from nemo_xtoken.report.aligned_tokens import visible
from nemo_xtoken.report.html import template, write_page
from nemo_xtoken.report.pair import Pair

ENDINGS = (".tiktoken", ".json", ".model", ".gguf")


def write_pair(pair: Pair, path: Path) -> Path:
    """Write the page and return its path."""
    page = template("pair.html.j2", visible=lambda text: visible(text.encode()))
    return write_page(
        path, page.render(pair=pair, audit=pair.audit, uncommon=uncommon(pair.audit), names=names_of(pair))
    )


def names_of(pair: Pair) -> tuple[str, str]:
    """What student and teacher are called in a title; the whole specs where their names are the same."""
    specs = (pair.student_spec, pair.teacher_spec)
    short = tuple(map(name_of, specs))
    return specs if short[0] == short[1] else (short[0], short[1])


def name_of(spec: str) -> str:
    """The last part of a tokenizer's spec, without its options and the ending of a file."""
    path = PurePath(spec.partition("?")[0])
    if path.name in ("tokenizer.json", "tokenizer.model") and path.parent.name:
        return path.parent.name
    return path.stem if path.suffix in ENDINGS else path.name


def uncommon(audit: Audit) -> list[tuple[str, ClassCoverage]]:
    """Classes that are not all common, by label, in the order of the audit; the user's own last."""
    labelled = [(name.label, coverage) for name, coverage in audit.classes.items()]
    return [(label, coverage) for label, coverage in [*labelled, *audit.user_classes.items()] if coverage.uncommon]
