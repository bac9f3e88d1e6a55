"""Alignment of TRL's GOLD and ours in one run: which texts are cut right, and the speed by length.

    pip install datasets accelerate && pip install --no-deps trl
    python tests/benchmarks/bench_peers.py [--json] [--tokenizers FOLDER] [--repeats N]

The oracle cuts a text wherever a token ends on both sides, by the bytes of the tokens in the two vocabularies; texts of
which these are not the bytes are left out. Texts are those of tests/awkward_text.py and pieces of Python's
documentation. Times are CPU-seconds, both in turns; "with tokens" is from the text to chunks. Tokenizers are those of
tests/fetch_test_tokenizers.py that are `tokenizer.json` files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # read when the tokenizers library starts its threads
CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from tokenizers import Tokenizer as Library  # noqa: E402

from nemo_xtoken import tokenizers  # noqa: E402
from nemo_xtoken.alignment import align  # noqa: E402
from nemo_xtoken.tokenizers import Tokenizer  # noqa: E402
from nemo_xtoken.types import Encoding  # noqa: E402
from tests.awkward_text import TEXTS  # noqa: E402

PROSE = "\n\n".join(topics.values())
PIECES = [*filter(None, TEXTS), *(PROSE[start : start + 2000] for start in range(0, 200_000, 2000))]
LENGTHS = (4_000, 16_000, 64_000, 256_000)
PAIRS = (("smollm2", "deepseek_v3"), ("smollm2", "gemma3"))

Ends = list[tuple[int, int]]
Row = dict[str, str | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tokenizers", type=Path, default=CHECKOUT / ".cache" / "tokenizers", metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is taken")
    arguments = parser.parse_args()
    rows: dict[str, Any] = {"trl": version("trl"), "exact": [], "speed": []}
    for names in PAIRS:
        paths = [arguments.tokenizers / f"{name}.json" for name in names]
        exact, speed = both(" / ".join(names), paths, arguments.repeats)
        rows["exact"] += exact
        rows["speed"] += speed
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"TRL {rows['trl']}")
    for row in (*rows["exact"], *rows["speed"]):
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def both(pair: str, paths: list[Path], repeats: int) -> tuple[list[Row], list[Row]]:
    """Texts that are cut right, and speeds, of both on one pair of tokenizers."""
    ours = [tokenizers.load(str(path)) for path in paths]
    theirs = [Library.from_file(str(path)) for path in paths]
    exact = {"texts": 0, "ours": 0, "trl": 0, "trl_refuses": 0}
    for text in PIECES:
        sides = [each.encode(text) for each in ours]
        if any(side.decode(each.ids.tolist()) != text for side, each in zip(ours, sides, strict=True)):
            continue
        right = oracle(ours, sides)
        exact["texts"] += 1
        exact["ours"] += our_ends(*sides) == right
        try:
            exact["trl"] += trl_ends(theirs, text) == right
        except Exception:  # whatever it raises, the text is not aligned
            exact["trl_refuses"] += 1
    counted: Row = {"pair": pair, **exact}
    return [counted], [] if exact["trl_refuses"] == exact["texts"] else list(speeds(pair, ours, theirs, repeats))


def oracle(sides: list[Tokenizer], encodings: list[Encoding]) -> Ends:
    """How many tokens of both sides end at or before each byte where one of both does."""
    by_byte: list[dict[int, int]] = []
    for side, encoding in zip(sides, encodings, strict=True):
        ends = accumulate(len(side.token_bytes(token_id)) for token_id in encoding.ids.tolist())
        by_byte.append({end: number for number, end in enumerate(ends, start=1)})
    return [(by_byte[0][end], by_byte[1][end]) for end in sorted(by_byte[0].keys() & by_byte[1].keys())]


def our_ends(student: Encoding, teacher: Encoding) -> Ends:
    """The last token of each chunk on both sides, exclusive."""
    chunks = align(student, teacher)
    return list(zip(chunks.student_end.tolist(), chunks.teacher_end.tolist(), strict=True))


def trl_offsets(sides: list[Library], text: str) -> list[Any]:
    """TRL's byte offsets of both sides."""
    from trl.experimental.utils import encode_with_byte_offsets  # pyright: ignore[reportMissingImports]

    return [encode_with_byte_offsets(side, [text])[0][1] for side in sides]


def trl_groups(offsets: list[Any]) -> tuple[list[list[int]], list[list[int]]]:
    """TRL's groups of tokens, of both sides."""
    from trl.experimental.gold.gold_trainer import ULDLoss  # pyright: ignore[reportMissingImports]

    return ULDLoss._align_by_byte_offsets(*offsets)


def trl_ends(sides: list[Library], text: str) -> Ends:
    """As `our_ends`, of TRL."""
    groups = trl_groups(trl_offsets(sides, text))
    return [(student[-1] + 1, teacher[-1] + 1) for student, teacher in zip(*groups, strict=True)]


def speeds(pair: str, ours: list[Tokenizer], theirs: list[Library], repeats: int) -> Iterator[Row]:
    """Student tokens per CPU-second by length; it is linear if this does not fall."""
    for length in LENGTHS:
        text = PROSE[:length]
        sides, offsets = [each.encode(text) for each in ours], trl_offsets(theirs, text)
        timed: dict[str, Callable[[], object]] = {
            "ours": lambda sides=sides: align(*sides),
            "trl": lambda offsets=offsets: trl_groups(offsets),
            "ours_with_tokens": lambda text=text: align(*(each.encode(text) for each in ours)),
            "trl_with_tokens": lambda text=text: trl_groups(trl_offsets(theirs, text)),
        }
        best = dict.fromkeys(timed, float("inf"))
        for _ in range(repeats):
            for name, function in timed.items():
                start = time.process_time()
                function()
                best[name] = min(best[name], time.process_time() - start)
        row: Row = {"pair": pair, "tokens": len(sides[0])}
        yield row | {f"{name}_M_tokens_s": round(len(sides[0]) / best[name] / 1e6, 3) for name in timed}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
