"""Whether reading a cache keeps up with the training that reads it: both in CPU-seconds of the same steps of one rank.

    python -m tests.benchmarks.bench_cached_training [--steps N] [--json]

A student of two layers of 256 and a teacher of one layer as wide as Qwen3-4B (2,560), over the 300 ids of the tests'
toy tokenizers: rows of a large teacher, beside a student's step that is smaller than any that is worth a cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_xtoken.config import ModelConfig, RunConfig
from nemo_xtoken.integrations.megatron import CacheJob, fill_caches, launch
from nemo_xtoken.teachers.cache import Storage
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

STUDENT = ModelConfig(num_layers=2, hidden_size=256, num_attention_heads=4, ffn_hidden_size=768)
TEACHER = ModelConfig(num_layers=1, hidden_size=2560, num_attention_heads=4, ffn_hidden_size=256)
LENGTH = 512
STORED = ("bf16", "fp8")


def make_run(folder: Path, name: str, steps: int) -> RunConfig:
    """The toy's run with larger models and longer sequences."""
    train = replace(toy.TRAIN, steps=steps, checkpoint_interval=0)
    config = toy.student_run(folder, name, train=train)
    data = replace(config.data, student_sequence_length=LENGTH, teacher_sequence_length=LENGTH, validation_path=None)
    return replace(config, student=STUDENT, data=data, teachers=(replace(config.teachers[0], model=TEACHER),))


def steps_of(config: RunConfig, steps: int) -> dict[str, float]:
    """Teacher tokens per CPU-second of whole steps, and of the teacher's hidden states alone, after a first step."""
    # Megatron is imported on a rank, where the CPU is its device already.
    from nemo_xtoken.integrations.megatron import layout as layouts
    from nemo_xtoken.integrations.megatron import train_loop
    from nemo_xtoken.integrations.megatron.setup import set_up

    training = set_up(config, layouts.start(config.parallel, "cpu", config.train.seed))
    (source,) = training.objective.sources
    asked, spent = source.hidden, [0.0, 0.0]

    def timed(batch: Any) -> Any:
        with _adding_to(spent, 1):
            return asked(batch)

    source.hidden = timed  # type: ignore[method-assign]
    batches = training.batches()
    train_loop.train_step(training, 1, next(batches))
    spent[1] = 0.0
    for step in range(2, steps + 2):
        micro_batches = next(batches)
        with _adding_to(spent, 0):
            train_loop.train_step(training, step, micro_batches)
    tokens = steps * config.train.global_batch_size * LENGTH
    return {"step": tokens / spent[0], "teacher": tokens / spent[1], "share": spent[1] / spent[0]}


@contextmanager
def _adding_to(spent: list[float], place: int) -> Iterator[None]:
    started = time.process_time()
    yield
    spent[place] += time.process_time() - started


def measure(steps: int) -> dict[str, dict[str, float]]:
    """Of the teacher's model on the student's rank, and of each way to store it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toy.make_data(folder)
        trained = toy.teacher_run(folder)
        launch(replace(trained, student=TEACHER, train=replace(trained.train, steps=3)))
        here = make_run(folder, "run", steps + 1)
        found = {"colocated": _on_a_rank(here, steps)}
        for stored_as in STORED:
            (teacher,) = here.teachers
            cached = replace(here, teachers=(replace(teacher, kind="cached", cache=stored_as),))
            fill_caches(cached, CacheJob(storage=Storage(stored_as=stored_as)))  # type: ignore[arg-type]
            found[f"cached, {stored_as}"] = _on_a_rank(cached, steps)
    return found


def _on_a_rank(config: RunConfig, steps: int) -> dict[str, float]:
    Path(config.run_dir).mkdir(exist_ok=True)
    (result,) = run_ranks(1, steps_of, config, steps, timeout=600)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.steps)
    if arguments.json:
        print(json.dumps(found))
        return
    print("teacher tokens per CPU-second        steps      teacher   its share of a step")
    for name, rates in found.items():
        print(f"{name:30} {rates['step']:12,.0f} {rates['teacher']:12,.0f} {100 * rates['share']:12.1f} %")


if __name__ == "__main__":
    main()
