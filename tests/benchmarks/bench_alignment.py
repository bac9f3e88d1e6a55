"""CPU speed of alignment and of encoding with spans, on one thread.

    python tests/benchmarks/bench_alignment.py [--json] [--tokenizers FOLDER] [--repeats N]

prints student tokens per CPU-second of `align` by length, plain and between bos and eos; of the paper's aligner beside
it; and of encoding with spans beside the bare library that makes the ids. Text is the documentation that comes with
Python; tokenizers are those of tests/fetch_test_tokenizers.py and examples/fetch_tokenizers.py that are in the folder,
and lossy ones that are trained on the text, which also encode it with snow in it that they do not know.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from nemo_xtoken import tokenizers  # noqa: E402
from nemo_xtoken.alignment import align, align_dp  # noqa: E402
from nemo_xtoken.tokenizers import Tokenizer, threads  # noqa: E402
from nemo_xtoken.types import Encoding, role_code  # noqa: E402
from tests import small_tokenizers as small  # noqa: E402
from tests.fetch_test_tokenizers import specs  # noqa: E402

TEXT = "\n\n".join(topics.values())
DOCUMENTS = [TEXT[start : start + 2000] for start in range(0, 200_000, 2000)]
SNOWY_DOCUMENTS = [document.replace(", ", ", \u2603 and \u96ea\u3060, ") for document in DOCUMENTS]
LENGTHS = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
PAIRS = (("cl100k", "qwen"), ("llama3", "gemma3"), ("o200k_base", "tekken"), ("mistral_v1", "cl100k"))

LOSSY = ("unigram NFKC", "Hugging Face unigram", "WordPiece")

Row = dict[str, str | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tokenizers", type=Path, default=CHECKOUT / ".cache" / "tokenizers", metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many is taken")
    arguments = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"  # read when the tokenizers library starts its threads
    threads._available = 1
    loaded = load_all(arguments.tokenizers)
    pairs = [(f"{s} / {t}", loaded[s], loaded[t]) for s, t in PAIRS if s in loaded and t in loaded]
    results = {
        "align": [row for pair in pairs[:1] for row in by_length(*pair, arguments.repeats)],
        "dp": [row for pair in pairs for row in dp_and_exact(*pair, arguments.repeats)],
        "encode": [
            encode_and_library(name, each, documents, arguments.repeats)
            for name, each, documents in [
                *((name, each, DOCUMENTS) for name, each in loaded.items()),
                *((f"{name}, unknown", loaded[name], SNOWY_DOCUMENTS) for name in LOSSY),
            ]
        ],
    }
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for title, rows in results.items():
        print(title, *table(rows), "", sep="\n")


def load_all(folder: Path) -> dict[str, Tokenizer]:
    """Every tokenizer at hand, by name."""
    known = {
        "cl100k": f"{folder / 'cl100k_base.tiktoken'}?pattern=cl100k",
        "qwen": f"{folder / 'qwen.tiktoken'}?pattern=qwen",
        **specs(folder),
    }
    found = {name: tokenizers.load(spec) for name, spec in known.items() if Path(spec.partition("?")[0]).is_file()}
    return found | {"bytes": tokenizers.load("bytes"), **trained()}


def trained() -> Mapping[str, Tokenizer]:
    """Tokenizers that change the text: unigram models with NFKC, and WordPiece with lower case."""
    lines = [line for line in TEXT.split("\n") if line]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("unigram", "wordpiece"):
            (folder / name).mkdir()
        paths = (
            small.sentencepiece_file(
                folder, sentences=lines, model_type="unigram", vocab_size=4000, character_coverage=1.0
            ),
            small.split_unigram(folder / "unigram", sentences=lines, vocab_size=4000),
            small.wordpiece(folder / "wordpiece", sentences=lines, vocab_size=8000),
        )
        return {name: tokenizers.load(str(path)) for name, path in zip(LOSSY, paths, strict=True)}


def by_length(pair: str, student: Tokenizer, teacher: Tokenizer, repeats: int) -> Iterator[Row]:
    """Speed of `align`: it is linear if this does not fall."""
    whole = TEXT * (1 + LENGTHS[-1] * 5 // len(TEXT))
    encoded = student.encode(whole)
    for length in LENGTHS:
        text = whole.encode()[: int(encoded.ends[length - 1])].decode(errors="ignore")
        sides = student.encode(text), teacher.encode(text)
        edged = with_edges(sides[0]), with_edges(sides[1])
        plain_s = seconds(lambda sides=sides: align(*sides), repeats)
        edged_s = seconds(lambda edged=edged: align(*edged), repeats)
        yield {
            "pair": pair,
            "tokens": len(sides[0]),
            "microseconds": round(plain_s * 1e6, 1),
            "M_tokens_s": million(len(sides[0]), plain_s),
            "with_bos_eos_M_tokens_s": million(len(sides[0]), edged_s),
        }


def with_edges(text: Encoding) -> Encoding:
    """[bos] text [eos]; their ids don't matter here."""
    size = int(text.ends[-1])
    roles = np.zeros(len(text) + 2, np.uint32)
    roles[[0, -1]] = role_code("bos"), role_code("eos")
    ids = np.concatenate([[0], text.ids, [0]]).astype(np.int32)
    return Encoding(ids, np.concatenate([[0], text.starts, [size]]), np.concatenate([[0], text.ends, [size]]), roles)


def dp_and_exact(pair: str, student: Tokenizer, teacher: Tokenizer, repeats: int) -> Iterator[Row]:
    """The paper's aligner beside the exact one, on 400,000 characters of prose: in 20 parts of some 4,500 tokens, and
    at once."""
    for characters in (20_000, 400_000):
        parts = [TEXT[start : start + characters] for start in range(0, 400_000, characters)]
        pairs = [(student.encode(part), teacher.encode(part)) for part in parts]
        exact_s, dp_s = (
            min(times)
            for times in zip(
                *(
                    (
                        seconds(lambda pairs=pairs: [align(*sides) for sides in pairs], 1),
                        seconds(lambda pairs=pairs: [align_dp(*sides, student, teacher) for sides in pairs], 1),
                    )
                    for _ in range(repeats)
                ),
                strict=True,
            )
        )
        tokens = sum(len(sides[0]) for sides in pairs)
        yield {
            "pair": pair,
            "tokens": tokens // len(pairs),
            "exact_M_tokens_s": million(tokens, exact_s),
            "dp_M_tokens_s": million(tokens, dp_s),
            "times": round(dp_s / exact_s, 1),
        }


def encode_and_library(name: str, tokenizer: Tokenizer, documents: list[str], repeats: int) -> Row:
    """Encoding documents with spans and the library's own batch encoding to ids, in turns; the median of the ratios."""
    tokens = sum(map(len, tokenizer.encode_batch(documents)))
    bare = bare_encoding(vars(tokenizer).get("_library"), documents)
    pairs = [(seconds(lambda: tokenizer.encode_batch(documents), 1), bare and seconds(bare, 1)) for _ in range(repeats)]
    row: Row = {"tokenizer": name, "tokens": tokens, "ours_M_tokens_s": million(tokens, min(ours for ours, _ in pairs))}
    ratios = [ours / library for ours, library in pairs if library]
    if ratios:
        library_s = min(library for _, library in pairs if library)
        row |= {"library_M_tokens_s": million(tokens, library_s), "times": round(median(ratios), 2)}
    return row


def bare_encoding(library: Any, documents: list[str]) -> Callable[[], object] | None:
    """The library's own way to make ids of all documents on one thread."""
    if hasattr(library, "encode_ordinary"):
        return lambda: [library.encode_ordinary(document) for document in documents]
    if hasattr(library, "encode_batch_fast"):
        return lambda: [each.ids for each in library.encode_batch_fast(documents, add_special_tokens=False)]
    if hasattr(library, "Encode"):
        return lambda: library.Encode(documents, out_type=int, num_threads=1)
    return None


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Least CPU-seconds of a call, each time of as many calls as take 20 ms."""
    start = time.process_time()
    function()
    calls = 1 + int(0.02 / max(time.process_time() - start, 1e-6))
    times: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            function()
        times.append((time.process_time() - start) / calls)
    return min(times)


def million(tokens: int, seconds: float) -> float:
    return round(tokens / seconds / 1e6, 2)


def table(rows: list[Row]) -> Iterator[str]:
    """Rows as lines of equal columns."""
    if not rows:
        yield "no tokenizers here: run tests/fetch_test_tokenizers.py and examples/fetch_tokenizers.py"
        return
    names = list(max(rows, key=len))
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))


if __name__ == "__main__":
    main()
