from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_xtoken.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    round_step,
    running_mean,
    short,
    three_digits,
)


def test_no_points_make_no_chart() -> None:
    assert line_chart("t", "c", [Series("run", "run", [])]) is None


def test_the_corners_of_the_plot_are_the_ends_of_the_data() -> None:
    chart = line_chart("t", "c", [Series("run", "run", [(1, 5.0), (11, 3.0)])])
    assert chart is not None
    assert chart.lines[0].path == f"M{LEFT:.1f},{TOP:.1f}L{WIDTH - RIGHT:.1f},{HEIGHT - BOTTOM:.1f}"


def test_a_flat_curve_of_one_point_sits_in_the_middle() -> None:
    chart = line_chart("t", "c", [Series("run", "run", [(1, 5.0)])])
    assert chart is not None
    assert chart.lines[0].path == f"M{(LEFT + WIDTH - RIGHT) / 2:.1f},{(TOP + HEIGHT - BOTTOM) / 2:.1f}"


def test_a_series_without_points_is_left_out() -> None:
    chart = line_chart("t", "c", [Series("run", "run", [(1, 5.0), (2, 4.0)]), Series("control", "control", [])])
    assert chart is not None
    assert [line.name for line in chart.lines] == ["run"]
    assert chart.description == "t over steps: run ends at 4"


@pytest.mark.parametrize(
    ("step", "expected"), [(0.9, 1), (1, 1), (1.5, 2), (2.1, 2), (3, 2), (4, 5), (8, 10), (0.04, 0.05), (190, 200)]
)
def test_steps_between_ticks_are_round(step: float, expected: float) -> None:
    assert round_step(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "written"), [(0.12345, "0.123"), (999.4, "999"), (5140.2, "5,140"), (-2e4, "-20,000")]
)
def test_a_value_is_written_with_the_digits_that_count(value: float, written: str) -> None:
    assert three_digits(value) == written


values = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)


@given(st.lists(values, min_size=1, max_size=60))
def test_everything_drawn_lies_inside_the_plot(curve: list[float]) -> None:
    chart = line_chart("t", "c", [Series("run", "run", list(enumerate(curve, start=1)))])
    assert chart is not None
    for tick in chart.x_ticks:
        assert LEFT - 0.01 <= tick.position <= WIDTH - RIGHT + 0.01
    for tick in chart.y_ticks:
        assert TOP - 0.01 <= tick.position <= HEIGHT - BOTTOM + 0.01
    for point in chart.lines[0].mean_path[1:].split("L"):
        x, y = map(float, point.split(","))
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM


@given(st.lists(values, min_size=1, max_size=200))
def test_a_running_mean_keeps_the_steps_and_the_bounds(curve: list[float]) -> None:
    means = running_mean(list(enumerate(curve)))
    assert [x for x, _ in means] == list(range(len(curve)))
    assert all(min(curve) - 1e-6 <= y <= max(curve) + 1e-6 for _, y in means)


def test_a_running_mean_smooths_noise_and_keeps_a_line() -> None:
    noise = [(i, (-1.0) ** i) for i in range(200)]
    assert max(abs(y) for _, y in running_mean(noise)[10:-10]) < 0.2
    line = [(i, 2.0 * i) for i in range(200)]
    assert all(math.isclose(y, 2.0 * x) for x, y in running_mean(line))


def test_labels_of_large_values_are_short() -> None:
    assert [short(value) for value in (0.0, 5e-5, 9_000, 10_000, 250_000, 1_200_000, -3e9)] == [
        "0",
        "5e-05",
        "9,000",
        "10k",
        "250k",
        "1.2M",
        "-3G",
    ]
