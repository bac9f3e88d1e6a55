"""The documents: their code block by block, the commands in them, the files that they write."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import dropwhile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])

Words = list[str]


def blocks(document: Path, language: str) -> list[str]:
    """The code of a document in one language, block by block."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


bash_blocks = partial(blocks, language="bash")


def with_stand_ins(text: str, stand_ins: Mapping[str, object]) -> str:
    """A document's code with what is small in the place of what is a reader's; each of these has to be there."""
    for written, ours in stand_ins.items():
        assert written in text, written
        text = text.replace(written, str(ours))
    return text


def inline_code(document: Path) -> list[str]:
    """What stands in backquotes in running text."""
    outside = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [" ".join(quoted.split()) for quoted in re.findall(r"`([^`]+)`", outside)]


HERE_DOCUMENT = re.compile(r"cat > (\S+) <<'(\w+)'\n(.*?)\n\2\n", re.DOTALL)
FILES = {
    name: text for path in DOCUMENTS for block in bash_blocks(path) for name, _, text in HERE_DOCUMENT.findall(block)
}
"""Configs that the documents write, by path."""


def calls(line: str) -> Iterator[Words]:
    """The programs that a line of bash calls, with their arguments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: Words = []
    for word in (*lexer, ";"):
        if word.strip("|&;"):
            words.append(word)
            continue
        if called := called_by(words):
            yield called
        words = []


def called_by(words: Words) -> Words:
    """Without variables that are set before, and without `timeout`; nothing where variables are all."""
    words = list(dropwhile(lambda word: re.match(r"\w+=", word), words))
    if words[:1] == ["timeout"]:
        return list(dropwhile(lambda word: not word.isdigit(), words))[1:]
    return words


PROGRAM_IN_TEXT = re.compile(r"(nemo-xtoken|nemo xtoken|python|torchrun|pytest|(examples|tests)/\S+\.(sh|py))( |$)")


def commands(document: Path) -> Iterator[tuple[Words, bool]]:
    """Each call of a program, with whether it is whole: in running text it may lack arguments."""
    for block in bash_blocks(document):
        for line in HERE_DOCUMENT.sub("", block).replace("\\\n", " ").splitlines():
            for words in calls(line):
                yield words, True
    for quoted in inline_code(document):
        if PROGRAM_IN_TEXT.match(quoted):
            yield shlex.split(re.sub(r"\bN\b", "1", quoted)), False
