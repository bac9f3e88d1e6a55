"""A pair of tokenizers as one self-contained HTML page: coverage, W, examples, and the loss to take."""

from __future__ import annotations

from pathlib import Path

from nemo_xtoken.projection import Audit, ClassCoverage
from nemo_xtoken.report.aligned_tokens import visible
from nemo_xtoken.report.html import template, write_page
from nemo_xtoken.report.pair import Pair


def write_pair(pair: Pair, path: Path) -> Path:
    """Write the page and return its path."""
    page = template("pair.html.j2", visible=lambda text: visible(text.encode()))
    return write_page(path, page.render(pair=pair, audit=pair.audit, uncommon=uncommon(pair.audit)))


def uncommon(audit: Audit) -> list[tuple[str, ClassCoverage]]:
    """Classes that are not all common, by label, in the order of the audit; the user's own last."""
    labelled = [(name.label, coverage) for name, coverage in audit.classes.items()]
    return [(label, coverage) for label, coverage in [*labelled, *audit.user_classes.items()] if coverage.uncommon]
