"""Speed of `data prepare`, beside the tokenizers alone in the same run, and of loading batches from the page cache.

    python tests/benchmarks/bench_data.py [SOURCE...] [--student SPEC --teacher SPEC] [--workers N] [--json]

Without SOURCE the text is the Python standard library; without specs the tokenizers are cl100k and Qwen, fetched into
.cache/tokenizers first. Tokens are the student's, unless it says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nemo_xtoken import tokenizers
from nemo_xtoken.data import GlobalBatches, PackedDataset, PreparedData, prepare
from nemo_xtoken.data.reading import Fields, SourceDocument
from nemo_xtoken.data.shards import cut_sources
from nemo_xtoken.data.sources import find_sources, read_slice
from nemo_xtoken.data.workers import run_tasks
from nemo_xtoken.tokenizers import Tokenizer

CHECKOUT = Path(__file__).resolve().parents[2]
BATCH_CHARACTERS = 1 << 20
LOADED_STEPS = 60

T = TypeVar("T")


class Timed(NamedTuple):
    """Seconds of the clock and of all processors, those of ended worker processes included."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="*", type=Path)
    parser.add_argument("--student", metavar="SPEC")
    parser.add_argument("--teacher", metavar="SPEC")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--length", type=int, default=4096, help="of both sequences, for loading")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    if (arguments.student is None) != (arguments.teacher is None):
        parser.error("--student and --teacher go together")
    specs = default_pair() if arguments.student is None else (arguments.student, arguments.teacher)
    student, teacher = map(tokenizers.load, specs)
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        sources = arguments.source or [standard_library(Path(folder) / "text.jsonl")]
        result = measure(sources, Path(folder) / "out", (student, teacher), arguments.workers)
        result |= measure_loading(Path(folder) / "out", arguments.length)
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(f"{k:36} {v}" for k, v in result.items()))


def default_pair() -> tuple[str, str]:
    folder = CHECKOUT / ".cache" / "tokenizers"
    command = [sys.executable, str(CHECKOUT / "examples" / "fetch_tokenizers.py"), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return f"{folder}/cl100k_base.tiktoken?pattern=cl100k", f"{folder}/qwen.tiktoken?pattern=qwen"


def standard_library(path: Path) -> Path:
    """Its modules as JSON lines, without the tests."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py"))
    with path.open("w", encoding="utf-8") as file:
        for module in modules:
            if not {"test", "tests", "site-packages"}.intersection(module.parts):
                file.write(json.dumps({"text": module.read_text(encoding="utf-8", errors="replace")}) + "\n")
    return path


def measure(sources: list[Path], out: Path, sides: tuple[Tokenizer, Tokenizer], workers: int) -> dict[str, Any]:
    """`prepare`, and the same text through both tokenizers on as many processes and nothing else."""
    batches = text_batches(sources, sides[0])

    def tokenize(batch: int, report: Callable[[int], None]) -> None:
        for side in sides:
            side.encode_batch(batches[batch])

    for side in sides:
        side.encode_batch(batches[0])  # what they set up at first use counts for neither
    _, alone = timed(lambda: run_tasks(range(len(batches)), tokenize, workers, lambda amount: None))
    manifest, whole = timed(lambda: prepare(sources, out, *sides, workers=workers))
    tokens, teacher = manifest.student.tokens, manifest.teacher
    return {
        "documents": manifest.documents,
        "bytes": manifest.bytes,
        "student_tokens": tokens,
        "teacher_tokens": teacher.tokens if teacher else 0,
        "one_to_one_share": round(teacher.one_to_one_share, 4) if teacher else 0,
        "inexact_share": round(teacher.inexact_share, 6) if teacher else 0,
        "workers": workers,
        "tokenizers_alone_tokens_per_s": round(tokens / alone.wall),
        "prepare_tokens_per_s": round(tokens / whole.wall),
        "tokenizers_alone_tokens_per_cpu_s": round(tokens / alone.cpu),
        "prepare_tokens_per_cpu_s": round(tokens / whole.cpu),
        "prepare_cpu_over_tokenizers_alone": round(whole.cpu / alone.cpu, 3),
    }


def text_batches(sources: list[Path], student: Tokenizer) -> list[list[str]]:
    """All text in memory, in batches as `prepare` makes them, but as many as it has shards at least."""
    fields = Fields("text", None, student)
    batches: list[list[str]] = []
    for shard in cut_sources(find_sources(sources), sys.exit, 1).shards:
        batches.append([])
        held = 0
        for document in (document for part in shard.slices for document in read_slice(part, fields)):
            if isinstance(document, SourceDocument):
                if held > BATCH_CHARACTERS:
                    batches.append([])
                    held = 0
                batches[-1].append(document.text)
                held += len(document.text)
    return batches


def measure_loading(path: Path, length: int) -> dict[str, Any]:
    """Micro batches of 4 in steps of 16 on one process; the second pass over them, so that the pages are cached."""
    dataset, pieces = timed(lambda: PackedDataset(PreparedData.open(path), length, length, seed=1))
    fill, packing = timed(lambda: dataset.fill)
    steps = min(LOADED_STEPS, max(dataset.epoch_samples(0) // 16, 1))

    def load() -> tuple[int, int]:
        batches = GlobalBatches(dataset, 4, 16, 0, 1)
        student = teacher = 0
        for batch in (batch for _ in range(steps) for batch in next(batches)):
            student += int((batch.student_labels >= 0).sum())
            teacher += int((batch.teacher_labels >= 0).sum())
        return student, teacher

    load()
    (student, teacher), loading = timed(load)
    return {
        "sequence_length": length,
        "student_fill": round(fill[0], 4),
        "teacher_fill": round(fill[1][0], 4) if fill[1] else 0,
        "dropped_chunks": dataset.pieces.dropped_chunks,
        "pack_s": round(pieces.wall + packing.wall, 3),
        "loading_tokens_per_s": round(student / loading.wall),
        "loading_tokens_of_both_sides_per_s": round((student + teacher) / loading.wall),
        "loading_tokens_per_cpu_s": round(student / loading.cpu),
    }


def timed(function: Callable[[], T]) -> tuple[T, Timed]:
    """A function's result, and how long it took."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = function()
    return result, Timed(time.perf_counter() - wall, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
