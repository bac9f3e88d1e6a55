from __future__ import annotations

import json
import re
from pathlib import Path

from nemo_xtoken.report import write_report
from nemo_xtoken.report.fp8_maps import COLUMNS, read_maps
from tests.unit.test_report import write_run


def record(step: int, amax: float, underflow: float) -> dict[str, object]:
    tensor = {"amax": amax, "scale": 448 / amax, "underflow": underflow, "overflow": 0.0}
    nothing = {"amax": 0.0, "scale": 0.0, "underflow": 0.0, "overflow": 0.0}
    return {"step": step, "layers": {"layers.0.a": {"input": tensor, "weight": tensor, "gradient": nothing}}}


def write(folder: Path, records: list[dict[str, object]]) -> None:
    (folder / "fp8.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in records))


def test_a_run_without_fp8_has_no_maps(tmp_path: Path) -> None:
    assert read_maps(tmp_path) == []


def test_a_cell_is_the_worst_of_its_steps(tmp_path: Path) -> None:
    write(tmp_path, [record(step, 2.0**step, step / 1000) for step in range(1, COLUMNS * 2 + 1)])
    maps = {found.title: found for found in read_maps(tmp_path)}
    assert len(maps) == 12
    ((name, cells),) = maps["Input, underflow"].rows
    assert (name, len(cells)) == ("layers.0.a", COLUMNS)
    assert [cells[0].text, cells[-1].text] == ["0.20 %", "9.60 %"]
    assert [cells[0].shade, cells[-1].shade] == [0.0, 1.0]
    ((_, scales),) = maps["Weight, scale"].rows
    assert scales[0].text == "112"  # the smaller of the two
    assert abs(scales[24].shade - 0.5) < 0.02  # logarithmic
    ((_, zeros),) = maps["Gradient, amax"].rows
    assert {cell.shade for cell in zeros} == {0.0}
    assert maps["Gradient, amax"].is_zero
    assert maps["Input, underflow"].steps == (1, COLUMNS * 2)


def test_what_is_zero_everywhere_is_a_sentence_and_large_numbers_have_no_exponent(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write(run, [record(step, 0.4, 0.0) for step in (1, 2, 30)])
    html = write_report(run).read_text()
    assert html.count('class="map small"') == 4, "amax and scale of input and weight"
    text = re.sub(r"\s+", " ", html)
    assert (
        "share cut to the largest number (input, weight, gradient); share that became zero (input, weight, gradient)."
        in text
    )
    assert "largest values: 1,120 everywhere" in text
    assert "<span>step 1</span><span>30</span>" in text
