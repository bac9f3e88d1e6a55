"""Cut a tiktoken vocabulary to what a text uses, so that a small model on two cores has a small head.

    python examples/cut_vocabulary.py 'cl100k_base.tiktoken?pattern=cl100k' TEXT.jsonl ... --out FILE

keeps the tokens that the text uses, every token that the merges pass through on the way to them, the 256 single bytes
and all numerals of several digits, in their old order. On the given text the cut tokenizer gives the same tokens as the
whole one: it can do each of the merges that the whole one does, and no others. It tokenizes any other text as well.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from nemo_xtoken import tokenizers
from nemo_xtoken.errors import DataError, XTokenError

Ranks = dict[bytes, int]


def read_ranks(path: Path) -> Ranks:
    """Rank of each token in a tiktoken file: lines of a base64 token and its rank."""
    pairs = (line.split() for line in path.read_bytes().splitlines() if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def write_ranks(path: Path, tokens: Iterable[bytes]) -> None:
    """The tokens as a tiktoken file, ranked in the order given, under a temporary name until it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    unfinished.write_text("".join(lines))
    unfinished.replace(path)


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """The `text` of every JSON line."""
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                yield json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f'{path}:{number}: expected a JSON object with a "text", got {line[:60]!r}') from error


def merges(token: bytes, ranks: Ranks) -> Iterator[bytes]:
    """What byte pair encoding builds on its way from single bytes to `token`, the token included."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        candidates = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not candidates:
            return
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        yield parts[i]


def used_tokens(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> set[bytes]:
    """Bytes of every token that the texts consist of."""
    ids: set[int] = set()
    for text in texts:
        ids.update(tokenizer.encode(text).ids.tolist())
    return {tokenizer.token_bytes(token_id) for token_id in ids}


def cut(ranks: Ranks, used: set[bytes]) -> list[bytes]:
    """The tokens to keep, in the order of their ranks."""
    numerals = {token for token in ranks if len(token) > 1 and token.isdigit()}
    whole = (used & ranks.keys()) | numerals
    kept = {bytes([value]) for value in range(256)} | whole
    for token in whole:
        kept.update(merges(token, ranks))
    return sorted(kept, key=ranks.__getitem__)


def main() -> int:
    """Cut the vocabulary; 1 with one line on stderr where a file is missing or not what it should be."""
    parser = argparse.ArgumentParser(description="Cut a tiktoken vocabulary to the tokens that a text uses.")
    parser.add_argument("ranks", metavar="RANKS", help="a .tiktoken file with its split pattern: FILE?pattern=NAME")
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help='JSON lines with a "text"')
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    arguments = parser.parse_args()
    try:
        tokenizer = tokenizers.load(arguments.ranks)
        ranks = read_ranks(Path(arguments.ranks.partition("?")[0]))
        tokens = cut(ranks, used_tokens(tokenizer, read_texts(arguments.texts)))
        write_ranks(arguments.out, tokens)
    except (XTokenError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {len(tokens):,} of {len(ranks):,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
