from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_xtoken.report.axis import labels, round_step
from nemo_xtoken.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    running_mean,
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
    assert chart.lines[0].path == f"M{(LEFT + WIDTH - RIGHT) / 2:.1f},{(TOP + HEIGHT - BOTTOM) / 2:.1f}h0"


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
    for point in chart.lines[0].mean_path[1:].removesuffix("h0").split("L"):
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


def labels_of(*values: float, step: float) -> list[str]:
    return labels(values, step)


def test_labels_of_an_axis_have_one_unit_and_as_many_decimals() -> None:
    assert labels_of(0.0, 5_000, 10_000, 15_000, step=5_000) == ["0", "5k", "10k", "15k"]
    assert labels_of(2_000, 9_000, step=1_000) == ["2,000", "9,000"]
    assert labels_of(0.0, 200_000, 1_200_000, step=200_000) == ["0", "0.2M", "1.2M"]
    assert labels_of(-3e9, -2e9, step=1e9) == ["−3G", "−2G"]
    assert labels_of(5.8, 6.0, 6.2, step=0.2) == ["5.8", "6.0", "6.2"]
    assert labels_of(10_000, 10_500, step=500) == ["10.0k", "10.5k"]


def test_labels_of_small_values_are_short_enough_for_a_phone() -> None:
    assert labels_of(0.0, 0.00005, 0.0001, 0.00015, step=0.00005) == ["0", "0.5e-4", "1.0e-4", "1.5e-4"]
    assert labels_of(0.0005, 0.001, step=0.0005) == ["0.0005", "0.0010"]
    assert labels_of(1e-7, 2e-7, step=1e-7) == ["1e-7", "2e-7"]


def test_steps_are_whole_numbers() -> None:
    chart = line_chart("t", "c", [Series("run", "run", [(1, 5.0), (2, 4.0), (3, 4.5)])])
    assert chart is not None
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3"]


def test_a_long_curve_is_thinned_in_little_time_and_keeps_its_extremes() -> None:
    curve = [(step, 2 + math.sin(step / 9)) for step in range(1, 100_001)]
    curve[51_234] = (51_235, 3.9)
    curve[71_234] = (71_235, 0.1)
    started = time.process_time()
    chart = line_chart("t", "c", [Series("run", "run", curve)])
    assert time.process_time() - started < 3, "a quadratic mean takes 9 s"
    assert chart is not None
    (line,) = chart.lines
    assert len(line.points) <= MOST_POINTS
    assert len(line.means) <= MOST_POINTS
    assert {(51_235, 3.9), (71_235, 0.1)} <= set(line.points)
    assert line.points == sorted(line.points)
    assert len(line.path) < 16_000


def test_a_mean_is_not_lost_behind_a_huge_value() -> None:
    curve = [(step, 1e25 if step == 100 else 1.0) for step in range(5000)]
    assert running_mean(curve)[-1] == (4999, 1.0)


def test_one_spike_does_not_flatten_the_rest_and_is_told() -> None:
    curve = [(step, 2 + 0.1 * math.sin(step)) for step in range(200)]
    curve[50], curve[60] = (50, 900.0), (60, 800.0)
    chart = line_chart("t", "c", [Series("run", "run", curve)])
    assert chart is not None
    assert chart.y_axis.high < 2.2
    assert chart.cut == "Cut off: 2 above the chart, up to 900"
    smooth = line_chart("t", "c", [Series("run", "run", [(step, 10 / step) for step in range(1, 60)])])
    assert smooth is not None
    assert smooth.cut == ""
    assert smooth.y_axis.high == 10.0


def test_a_short_curve_is_drawn_once() -> None:
    chart = line_chart("t", "c", [Series(f"{n}", "s0 d0", [(x, x / 2) for x in range(n)]) for n in (49, 50)])
    assert chart is not None
    assert [line.is_noisy for line in chart.lines] == [False, True]
