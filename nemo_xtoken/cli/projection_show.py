"""`nemo-xtoken projection show`: single tokens in W, from either side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from nemo_xtoken.cli.console import Json, print_json, stdout, working

if TYPE_CHECKING:
    from nemo_xtoken.projection.look_up import Link, NamedToken, View

HEADINGS = {False: ("student token", "teacher token"), True: ("teacher token", "student token")}


def show(
    file: Annotated[Path, typer.Argument(help="A file made by projection build.")],
    tokens: Annotated[
        list[str], typer.Argument(metavar="TOKEN...", help="Text, an id such as '#123', or bytes: '0xE2 0x82'.")
    ],
    teacher: Annotated[
        bool, typer.Option("--teacher", help="These are teacher tokens: show the student tokens that reach them.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most tokens shown for one token in the table.")] = 20,
    student_tokenizer: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Where the student's tokenizer is now.")
    ] = None,
    teacher_tokenizer: Annotated[str | None, typer.Option(metavar="SPEC", help="Where the teacher's is now.")] = None,
    json: Json = False,
) -> None:
    """Show which teacher tokens a student token stands for, or which student tokens reach a teacher token."""
    from nemo_xtoken.projection import ProjectionMatrix, look_up

    with working("reading the projection"):
        matrix = ProjectionMatrix.load(file)
        sides = matrix.load_pair(student_tokenizer, teacher_tokenizer)
        ids = [token_id for name in tokens for token_id in look_up.find_tokens(sides[teacher], name)]
        look = look_up.teacher_column if teacher else look_up.student_row
        found = [look(matrix, *sides, token_id) for token_id in ids]
    if json:
        print_json({"side": "teacher" if teacher else "student", "tokens": [as_dict(view) for view in found]})
    else:
        stdout.print(table(found, HEADINGS[teacher], limit))


def table(found: Sequence[View], headings: tuple[str, str], limit: int) -> Table:
    """One line for each entry of W, in groups by token."""
    grid = Table()
    for heading in (headings[0], "weight", headings[1]):
        grid.add_column(heading, justify="right" if heading == "weight" else "left")
    for view in found:
        for cells in lines(view, limit):
            grid.add_row(*cells)
        grid.add_section()
    return grid


def lines(view: View, limit: int) -> Iterator[tuple[Text, str, Text]]:
    """The lines of one token; its own name stands in the first of them."""
    name = label(view.token)
    if not view.links:
        yield name, "", Text(view.reason, style="dim")
    for link in view.links[:limit]:
        yield name, weight(link), label(link.token)
        name = Text()
    if len(view.links) > limit:
        yield name, "", Text(f"and {len(view.links) - limit:,} more; --limit shows them", style="dim")


def label(token: NamedToken) -> Text:
    """A token made visible, with its id; as bytes where it is no text by itself, with them where it is not ASCII.

    A special token by its role, with its own name where that is another.
    """
    from nemo_xtoken.projection.pieces import decode_strictly
    from nemo_xtoken.report.aligned_tokens import visible

    in_bytes = " ".join(f"0x{byte:02X}" for byte in token.content)
    is_text = decode_strictly(token.content) is not None
    name = token.role or (visible(token.content) if is_text else in_bytes)
    also = f" {in_bytes}" if is_text and not token.content.isascii() else ""
    if token.special_name != token.role:
        also = f" {token.special_name}"
    return Text.assemble(name, (f" #{token.token_id}{also}", "dim"))


def weight(link: Link) -> str:
    """A weight in few digits; 1 only where it is 1."""
    return "1" if link.weight == 1 else f"{link.weight:.4f}"


def as_dict(view: View) -> dict[str, Any]:
    """One token and its entries as plain data; `reason` says why there are none, and is null where there are some."""
    entries = [{**token_dict(link.token), "weight": link.weight} for link in view.links]
    return {**token_dict(view.token), "kind": view.kind, "reason": view.reason or None, "entries": entries}


def token_dict(token: NamedToken) -> dict[str, Any]:
    """A token as plain data; `text` is null where its bytes are no text by themselves."""
    from nemo_xtoken.projection.pieces import decode_strictly

    content = token.content
    text = decode_strictly(content) if content else None
    named = {"role": token.role, "special_name": token.special_name}
    return {"id": token.token_id, "text": text, "bytes": content.hex(" "), **named}
