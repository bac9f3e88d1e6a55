"""CPU-seconds and peak memory of W: loading the tokenizers, building it both ways, the audit. One process per pair.

    python tests/benchmarks/bench_projection.py [--json] [--pair STUDENT_SPEC TEACHER_SPEC]...

Without --pair: cl100k and Qwen in both directions, fetched into .cache/tokenizers first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nemo_xtoken import tokenizers
from nemo_xtoken.projection import audit, build

CHECKOUT = Path(__file__).resolve().parents[2]
COLUMNS = ("load_s", "build_s", "reverse_s", "audit_s", "peak_mb", "exact", "projected", "empty")
MAX_NAME = 40

T = TypeVar("T")
Pair = tuple[str, str]
Result = dict[str, str | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, action="append", metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--json", action="store_true", help="print one JSON list and nothing else")
    arguments = parser.parse_args()
    pairs = [(student, teacher) for student, teacher in arguments.pair or default_pairs()]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = pool.map(measure, pairs, chunksize=1)
    print(json.dumps(results, indent=2) if arguments.json else "\n".join(table(results)))


def default_pairs() -> list[Pair]:
    folder = CHECKOUT / ".cache" / "tokenizers"
    command = [sys.executable, str(CHECKOUT / "examples" / "fetch_tokenizers.py"), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    cl100k, qwen = f"{folder}/cl100k_base.tiktoken?pattern=cl100k", f"{folder}/qwen.tiktoken?pattern=qwen"
    return [(cl100k, qwen), (qwen, cl100k)]


def measure(pair: Pair) -> Result:
    """One pair, in a process of its own; the peak is of all but the reverse pass, with the libraries."""
    (student, teacher), load_s = timed(lambda: tuple(map(tokenizers.load, pair)))
    matrix, build_s = timed(lambda: build(student, teacher))
    _, audit_s = timed(lambda: audit(matrix, student, teacher))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _, reverse_s = timed(lambda: build(student, teacher, reverse_pass=True))
    return {
        "student": pair[0],
        "teacher": pair[1],
        "load_s": round(load_s, 3),
        "build_s": round(build_s, 3),
        "reverse_s": round(reverse_s, 3),
        "audit_s": round(audit_s, 3),
        "peak_mb": round(peak_mb, 1),
        "exact": matrix.num_exact,
        "projected": matrix.student_vocab_size - matrix.num_exact - matrix.num_empty,
        "empty": matrix.num_empty,
    }


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """A result, and the CPU-seconds of all threads that it took."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def table(results: list[Result]) -> list[str]:
    """The results as lines of equal columns."""
    names = [f"{short(str(result['student']))} -> {short(str(result['teacher']))}" for result in results]
    width = max(map(len, ["student -> teacher", *names]))
    lines = [f"{'student -> teacher':{width}}" + "".join(f"{name:>11}" for name in COLUMNS)]
    for name, result in zip(names, results, strict=True):
        lines.append(f"{name:{width}}" + "".join(f"{result[column]:>11}" for column in COLUMNS))
    return lines


def short(spec: str) -> str:
    """The end of a spec, which tells tokenizers apart."""
    return spec if len(spec) <= MAX_NAME else "…" + spec[-MAX_NAME:]


if __name__ == "__main__":
    main()
