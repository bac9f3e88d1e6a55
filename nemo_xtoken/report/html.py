"""HTML from the templates of this room, and its way to disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from nemo_xtoken.projection import CRITICAL_CLASSES
from nemo_xtoken.whole_file import whole_file

LOSS_NAMES = {
    "p_kl": "P-KL",
    "h_kl": "H-KL",
    "gold": "GOLD",
    "uld": "ULD",
    "strict_top_k": "strict top-k",
    "same_tokenizer": "same-tokenizer KL",
}
"""How losses are called in text."""


def template(name: str, **filters: Callable[..., str]) -> Template:
    """A template of this room; every text put into it is escaped, and a name that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("nemo_xtoken.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {"weight": write_weight, "loss_name": LOSS_NAMES.__getitem__, "grouped": grouped, "capital": capital}
    environment.filters.update({**own, **filters})
    environment.tests["critical"] = CRITICAL_CLASSES.__contains__
    return environment.get_template(name)


def write_weight(weight: float) -> str:
    """An entry of W in few digits, without rounding one that is below 1 up to it."""
    if weight >= 1:
        return "1"
    return f"{weight:.2f}" if weight >= 0.01 else f"{weight:.3f}" if weight >= 0.001 else "<.001"


def grouped(text: str) -> str:
    """A sentence with commas in its numbers of four digits and more."""
    return re.sub(r"\b\d{4,}\b", lambda number: f"{int(number[0]):,}", text)


def capital(label: str) -> str:
    """The label of a class of tokens as the first word of a line."""
    return (label[:1].upper() + label[1:]).replace("utf8", "UTF-8")


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all, and return its path. Raises as `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(page.encode(errors="backslashreplace"))
    return path
