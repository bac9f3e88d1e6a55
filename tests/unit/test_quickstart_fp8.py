from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from examples import quickstart_fp8
from examples.quickstart_fp8 import CONTROL, RECIPES, Run, costs, markdown, missing, planned, read_lines
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import DataError, XTokenError

CHECKOUT = Path(__file__).resolve().parents[2]
QUICKSTART = CHECKOUT / "examples" / "quickstart.yaml"


def line_of(run: Run, bits: float) -> dict[str, Any]:
    return run.key | {"bits_per_byte": bits, "curve": [[20, 2 * bits], [40, bits]], "cpu_seconds": 1}


@pytest.mark.parametrize("run", planned([2], [1, 2], RECIPES, ["train.steps=40"]), ids=str)
def test_a_run_differs_from_the_quickstarts_in_what_it_says(run: Run, tmp_path: Path) -> None:
    plain, config = load_run(QUICKSTART), load_run(QUICKSTART, run.overrides(tmp_path))
    assert (config.fp8 is None) == (run.recipe == CONTROL)
    assert config.fp8 is None or (config.fp8.recipe, config.fp8.backend) == (run.recipe, "emulate")
    assert (config.train.seed, config.data.seed, config.train.steps) == (2, 2, 40)
    assert config.parallel.tensor_model_parallel_size == run.tp
    teachers = (replace(plain.teachers[0], kind="cached"),)
    assert (config.student, config.teachers, config.optimizer) == (plain.student, teachers, plain.optimizer)
    assert config.train.global_batch_size == plain.train.global_batch_size
    assert config.data.path == plain.data.path


def test_the_curve_has_the_mean_of_every_ten_steps() -> None:
    points = [(float(step), float(step % 10)) for step in range(1, 26)]
    assert quickstart_fp8.thinned(points) == [(10, 4.5), (20, 4.5), (25, 3.0)]


def test_a_run_that_was_stopped_is_the_only_one_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned([1, 2], [1], ["current"], [])
    monkeypatch.setattr(quickstart_fp8, "TEACHER", tmp_path)
    executed: list[Run] = []

    def execute(run: Run, above: Path) -> dict[str, Any]:
        executed.append(run)
        if len(executed) == 3:
            raise XTokenError("stopped")
        return line_of(run, 1.0)

    monkeypatch.setattr(quickstart_fp8, "execute", execute)
    monkeypatch.setattr(quickstart_fp8, "call", lambda *_: None)
    with pytest.raises(XTokenError, match="stopped"):
        quickstart_fp8.train_missing(runs, tmp_path)
    quickstart_fp8.train_missing(runs, tmp_path)
    quickstart_fp8.train_missing(runs, tmp_path)
    assert executed == [*runs[:3], *runs[2:]]
    lines = read_lines(tmp_path / "runs.jsonl")
    assert missing(runs, lines) == []
    assert missing([Run("current", 1, 1, ("train.steps=40",))], lines) != []


def test_the_cost_of_a_recipe_is_against_the_control_of_the_same_seed_and_ranks() -> None:
    lines = [line_of(Run(CONTROL, 1, 1), 1.0), line_of(Run(CONTROL, 1, 2), 2.0), line_of(Run(CONTROL, 2, 1), 4.0)]
    lines += [line_of(Run("mxfp8", 1, 2), 2.03), line_of(Run("mxfp8", 1, 1), 0.995), line_of(Run("mxfp8", 1, 3), 9.0)]
    assert costs(lines, "mxfp8", 1) == pytest.approx([-0.5, 1.5])
    assert costs(lines, "mxfp8", 2) == []
    assert costs(lines, CONTROL, 1) == []
    assert costs(lines, CONTROL, 2) == pytest.approx([300])  # of the same seed on one rank
    rows = markdown(lines).splitlines()
    assert rows[2:] == [
        "| fp32 | 1 | 1.0000, 2.0000 |  |  |  |",
        "| mxfp8 | 1 | 0.9950, 2.0300, 9.0000 | -0.50 %, +1.50 % | +0.50 % ± 1.00 | mean |",
        "| fp32 | 2 | 4.0000 | +300.00 % | +300.00 % | no |",
    ]
    assert quickstart_fp8.difference_cells([0.9, -1.0])[2] == "all"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["quickstart_fp8.py", *map(str, arguments)])
    return quickstart_fp8.main()


def write(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_the_table_and_the_curve_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [line_of(run, 1.0 + run.seed / 100) for run in planned([1, 2], [1], RECIPES, [])])
    assert run_main(monkeypatch, "--table", "--folder", tmp_path) == 0
    assert capsys.readouterr().out.count("+0.00 % ± 0.00 | all |") == 4
    assert image.imread(tmp_path / "curve.png").shape[1] == 900
    assert (tmp_path / "curve.png").stat().st_size < 60_000
    assert run_main(monkeypatch, "train.steps=3", "--table", "--folder", tmp_path) == 1
    assert "has no run with these changes" in capsys.readouterr().err


def test_without_a_teacher_or_with_a_damaged_line_there_is_one_line_of_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart_fp8, "TEACHER", tmp_path / "none")
    assert run_main(monkeypatch, "--seeds", 1, "--folder", tmp_path) == 1
    assert "run examples/quickstart.sh first" in capsys.readouterr().err
    (tmp_path / "runs.jsonl").write_text('{"recipe": "fp32"}\n[half', encoding="utf-8")
    with pytest.raises(DataError, match=r"runs\.jsonl:2: expected a JSON object, got '\[half'"):
        read_lines(tmp_path / "runs.jsonl")


def test_the_page_has_the_table_of_the_committed_runs() -> None:
    lines = read_lines(CHECKOUT / "examples" / "quickstart_fp8_results" / quickstart_fp8.RESULTS)
    assert {line["recipe"] for line in lines} == {CONTROL, *RECIPES}
    assert markdown(lines) in (CHECKOUT / "docs" / "fp8.md").read_text(encoding="utf-8")
