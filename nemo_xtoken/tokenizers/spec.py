"""Loading a tokenizer by its spec, the one line of text that names it in commands and configs."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import parse_qsl

from nemo_xtoken.errors import SpecError, TokenizerError
from nemo_xtoken.tokenizers import hub
from nemo_xtoken.tokenizers.bytes_level import ByteTokenizer
from nemo_xtoken.tokenizers.huggingface import load_huggingface
from nemo_xtoken.tokenizers.patterns import FAMILIES, find_family
from nemo_xtoken.tokenizers.protocol import Tokenizer
from nemo_xtoken.tokenizers.sentencepiece_file import load_sentencepiece
from nemo_xtoken.tokenizers.tekken_file import MARK, load_tekken
from nemo_xtoken.tokenizers.tiktoken_file import load_rank_file

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
_FILE_SUFFIXES = {".json", ".model", ".tiktoken", ".txt", ".spm"}


@dataclass(frozen=True)
class Spec:
    """A parsed spec: what stands before the question mark, and the name after `pattern=`."""

    text: str
    place: str
    pattern: str | None


def load(spec: str) -> Tokenizer:
    """Load a tokenizer.

    spec is one of
        a directory with a tokenizer.json, tokenizer.model, tekken.json or one rank file; or such a file by any name
        FILE?pattern=NAME     a tiktoken rank file, with one of gpt2, cl100k, o200k, qwen, llama3
        pkg:DISTRIBUTION/FILE a file of an installed Python distribution, with `?pattern=` where it needs one
        bytes                 the bytes of the text, with ByT5's ids
        OWNER/MODEL           a model on the Hugging Face hub
    Raises SpecError for a spec that is wrong, TokenizerError for a file that is.
    """
    parsed = parse(spec)
    if parsed.place == "bytes":
        _refuse_pattern(parsed, "bytes")
        return ByteTokenizer()
    return _load_file(parsed, _find_file(parsed.place))


def parse(spec: str) -> Spec:
    """Split a spec at its question mark. Raises SpecError for an unknown option or pattern."""
    place, _, query = spec.strip().partition("?")
    if not place:
        raise SpecError(f"expected a tokenizer file, directory, hub name, pkg:... or bytes, got {spec!r}")
    pattern: str | None = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != "pattern":
            raise SpecError(f"{spec}: unknown option {key!r}; the only one is ?pattern=NAME")
        find_family(value)
        pattern = value
    return Spec(spec, place, pattern)


def _find_file(place: str) -> Path:
    if place.startswith("pkg:"):
        return _package_file(place.removeprefix("pkg:"))
    path = Path(place).expanduser()
    if path.is_dir():
        return _file_in(path)
    if path.exists():
        return path
    looks_like_path = path.suffix in _FILE_SUFFIXES or not _HUB_NAME.fullmatch(place)
    if looks_like_path:
        raise SpecError(f"{place}: no such file or directory{_neighbours(path)}")
    return hub.fetch(place)


def _neighbours(path: Path) -> str:
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _file_in(directory: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model", "tekken.json"):
        if (directory / name).is_file():
            return directory / name
    candidates = [path for pattern in ("*.tiktoken", "*.model") for path in sorted(directory.glob(pattern))]
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(path.name for path in candidates) or "no tokenizer file"
    raise SpecError(f"{directory}: expected a tokenizer.json or one tokenizer file, got {found}; name the file")


def _package_file(name: str) -> Path:
    distribution_name, _, file = name.partition("/")
    try:
        distribution = metadata.distribution(distribution_name)
    except (metadata.PackageNotFoundError, ValueError):
        raise SpecError(
            f"pkg:{name}: no distribution {distribution_name!r} is installed; "
            f"`pip install --no-deps {distribution_name}` is enough for a file"
        ) from None
    path = Path(str(distribution.locate_file(file)))
    if file and path.is_file():
        return path
    near = difflib.get_close_matches(file, map(str, distribution.files or ()), n=1, cutoff=0.4)
    hint = f"; did you mean pkg:{distribution_name}/{near[0]}?" if near else ""
    raise SpecError(f"pkg:{name}: {distribution_name} has no such file{hint}")


def _load_file(spec: Spec, path: Path) -> Tokenizer:
    """Load a file by what it holds: names don't tell, a `tokenizer.model` may be a rank file."""
    with path.open("rb") as file:
        start = file.read(4096)
    if _RANK_LINE.match(start) or path.suffix == ".tiktoken":
        if spec.pattern is None:
            raise SpecError(
                f"{spec.text}: a rank file doesn't say how it splits text; "
                f"add ?pattern=NAME with one of {', '.join(FAMILIES)}"
            )
        return load_rank_file(spec.text, path, spec.pattern)
    _refuse_pattern(spec, path.name)
    if MARK in start:
        return load_tekken(spec.text, path)
    if start.lstrip().startswith(b"{"):
        return load_huggingface(spec.text, path)
    if path.suffix == ".json":
        raise TokenizerError(f"{path}: expected a Hugging Face tokenizer.json, got a file that isn't a JSON object")
    return load_sentencepiece(spec.text, path)


def _refuse_pattern(spec: Spec, name: str) -> None:
    if spec.pattern is not None:
        raise SpecError(f"{spec.text}: ?pattern= is for tiktoken rank files, {name} is none; leave it out")
