"""Runs the trials that have no result yet, and writes a line for each that has ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from examples.paper_study.material import PROMPTS, text_hash, train
from examples.paper_study.plan import HERE, Loss, Study, Trial, fingerprint, run_config, student_data

RESULTS = HERE / "results"
SEARCH, COUNTED = RESULTS / "search.jsonl", RESULTS / "runs.jsonl"
MEASURES = (
    "bits_per_byte", "loss_multi_digit", "mass_multi_digit", "probability_multi_digit", "loss/one_digit_numeral",
    "loss_rest", "exact_answers",
)  # fmt: skip

Line = dict[str, Any]
Chosen = list[tuple[str, Loss]]
"""Losses with the names of their settings."""


def search(study: Study, chosen: Chosen, jobs: int) -> None:
    """Trains each loss at each rate with the seed of the search, and measures it on the validation text.

    In a setting of one rate there is nothing to search.
    """
    trials = [trial for setting, loss in chosen for trial in _trials_of_search(study, setting, loss)]
    run_all(study, trials, SEARCH, jobs, lambda trial: _measure(study, trial, "validation", prompts=False))


def count(study: Study, chosen: Chosen, seeds: int, jobs: int) -> None:
    """Trains each loss at its best rate with the first so many seeds, and measures it on the held-out text."""
    rates = best_rates(study, chosen)
    trials = [Trial(s, loss, rates[s, loss.name], seed) for seed in study.seeds[:seeds] for s, loss in chosen]
    run_all(study, trials, COUNTED, jobs, lambda trial: _measure(study, trial, "heldout", prompts=True))


def best_rates(study: Study, chosen: Chosen) -> dict[tuple[str, str], float]:
    """The rate with the fewest bits per byte on the validation text, for each setting and loss."""
    lines = {line["fingerprint"]: line for line in read_lines(SEARCH)}
    best: dict[tuple[str, str], float] = {}
    for setting, loss in chosen:
        trials = _trials_of_search(study, setting, loss)
        scores = [(lines[name_of(study, trial)]["bits_per_byte"], trial.rate) for trial in trials]
        best[setting, loss.name] = min(scores)[1] if scores else study.rates[setting][0]
    return best


def _trials_of_search(study: Study, setting: str, loss: Loss) -> list[Trial]:
    rates = study.rates[setting]
    return [Trial(setting, loss, rate, study.search_seed) for rate in rates] if len(rates) > 1 else []


def run_all(study: Study, trials: Iterable[Trial], file: Path, jobs: int, measure: Callable[[Trial], Line]) -> None:
    """Runs what `file` has no line of, so many at a time, and adds the lines as they come."""
    done = {line["fingerprint"] for line in read_lines(file)}
    missing = [t for name, t in {name_of(study, t): t for t in trials}.items() if name not in done]
    print(f"{file.name}: {len(missing)} runs to go", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, study, trial, measure): trial for trial in missing}
        for left, future in enumerate(as_completed(futures), start=1):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # what has begun ends and is kept; nothing else begins
            line = future.result()
            _append(file, line)
            name = f"{line['setting']} {line['loss']} rate {line['rate']:g} seed {line['seed']}"
            print(f"{left}/{len(missing)}  {name}: {line['bits_per_byte']:.4f} bits per byte", flush=True)


def name_of(study: Study, trial: Trial) -> str:
    """The trial's fingerprint: a line of other inputs is no result of this trial."""
    return fingerprint(study, trial, text_hash())


def evaluate(folder: Path, data: Path, *, prompts: bool) -> Line:
    """The measures of a trained student; those of numerals are not there where its tokenizer splits them all."""
    command = [str(Path(sys.executable).with_name("nemo-xtoken")), "evaluate", str(folder), "--json"]
    questions = ["--prompts", str(PROMPTS)] if prompts else []
    output = subprocess.run(
        [*command, "--data", str(data), *questions], capture_output=True, text=True, check=True
    ).stdout
    numbers = json.loads(output)
    return {name: numbers[name] for name in MEASURES if numbers.get(name) is not None}


def read_lines(file: Path) -> Iterator[Line]:
    """The lines of a results file; none where there is no file."""
    if file.is_file():
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def _run(study: Study, trial: Trial, measure: Callable[[Trial], Line]) -> Line:
    train(run_config(study, trial), trial.folder.with_name(f"{trial.folder.name}.log"))
    numbers = measure(trial)
    line = {"setting": trial.setting, "loss": trial.loss.name, "seed": trial.seed, "rate": trial.rate, **numbers}
    shutil.rmtree(trial.folder)
    return {**line, "fingerprint": name_of(study, trial)}


def _measure(study: Study, trial: Trial, text: str, *, prompts: bool) -> Line:
    return evaluate(trial.folder, student_data(study, trial.loss.student, text), prompts=prompts)


def _append(file: Path, line: Line) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as output:
        output.write(json.dumps(line) + "\n")
