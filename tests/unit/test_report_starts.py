"""How each start of a run ended: what is written, and what the page tells."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.errors import StoppedError, XTokenError
from nemo_xtoken.integrations.megatron.run_starts import FILE, last_step, recorded
from nemo_xtoken.report import write_report
from nemo_xtoken.report.run_facts import lapses, shortfall, totals
from nemo_xtoken.report.run_history import starts
from nemo_xtoken.report.run_record import read_run
from tests.unit.test_report import write_run


def save_config(run: Path, steps: int) -> None:
    config = RunConfig(
        run_dir=str(run),
        student=ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1),
        data=DataConfig(path="d", student_sequence_length=8, teacher_sequence_length=8),
        optimizer=OptimizerConfig(lr=1e-3),
        train=replace(TrainConfig(steps=1, micro_batch_size=1, global_batch_size=1), steps=steps),
    )
    save_run(config, run / "config.yaml")


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (XTokenError("the loss is nan at step 6"), "It failed after step 5 of 30: the loss is nan at step 6."),
        (StoppedError("SIGTERM: x is saved"), "It was stopped after step 5 of 30: SIGTERM: x is saved."),
        (KeyError("a bug\nof ours"), "It failed after step 5 of 30: KeyError: 'a bug"),
        (KeyboardInterrupt(), "It was stopped after step 5 of 30: interrupted from the keyboard."),
    ],
)
def test_a_start_tells_how_it_ended_and_the_error_goes_on(error: BaseException, ended: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=5)
    with pytest.raises(type(error)), recorded(run, 0, 30):
        raise error
    (start,) = starts(run)
    assert start.ended.startswith(ended)


def test_each_start_has_its_end_and_a_killed_one_has_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=30)
    with pytest.raises(XTokenError), recorded(run, 0, 30):
        raise XTokenError("no room.")
    first = (run / FILE).read_text().splitlines()[0]
    with (run / FILE).open("a") as file:
        file.write(first + "\n" + '{"time": "20')  # killed, and half a line of another
    with recorded(run, 15, 30):
        pass
    assert [(start.ended, start.verdict) for start in starts(run)] == [
        ("It failed after step 30 of 30: no room.", "worse"),
        ("It ended without a word, as what is killed does.", "worse"),
        ("It finished, after step 30 of 30.", "better"),
    ]
    (run / FILE).write_text(first + "\n")
    assert starts(run)[0].ended.endswith("does, or it is running still.")


def test_a_start_that_failed_before_its_first_step_says_so(tmp_path: Path) -> None:
    with pytest.raises(XTokenError), recorded(tmp_path, 0, 30):
        raise XTokenError("no checkpoint at t")
    assert [start.ended for start in starts(tmp_path)] == ["It failed before its first step: no checkpoint at t."]


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    run = write_run(tmp_path / "run", steps=2000)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20')
    assert last_step(run) == 2000


def test_the_page_of_a_failed_run_says_so_without_slurm(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 2.0, "grad_norm": float("nan")}) + "\n")
    save_config(run, 30)
    with pytest.raises(XTokenError), recorded(run, 0, 30):
        raise XTokenError("the loss is nan at step 6; lower optimizer.lr")
    record = read_run(run)
    assert dict(totals(record))["Steps"] == "5 of 30"
    assert shortfall(record) == "It has not reached its end: 30 steps were planned, 5 logged."
    assert lapses(record) == ["Gradient norm: NaN at step 5."]
    text = text_of(write_report(run))
    assert text.count("It failed after step 5 of 30: the loss is nan at step 6; lower optimizer.lr.") == 2
    assert "1 NaN at step 5" in text, "the chart of gradient norms says it as well"


def test_a_run_that_reached_its_end_has_no_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=30)
    assert shortfall(read_run(run)) == "", "without a config its end is not known"
    save_config(run, 30)
    assert (shortfall(read_run(run)), lapses(read_run(run))) == ("", [])


def test_values_that_are_not_finite_are_told_with_their_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ce": NaN, "validation_kd/qwen": NaN}\n{"step": 3, "ce": Infinity}\n{"step": 4}\n')
    assert lapses(read_run(run)) == [
        "Cross-entropy: not finite at 2 steps, 2 to 3.",
        "Distillation loss, validation, qwen: NaN at step 2.",
    ]
