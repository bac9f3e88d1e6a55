"""HTML from the templates of this room, and its way to disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str, **filters: Callable[..., str]) -> Template:
    """A template of this room; every text put into it is escaped, and a name that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("nemo_xtoken.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path
