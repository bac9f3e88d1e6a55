"""Three teachers inside Bridge, the W of one of them trained: the curve of our own loop, checkpoints, export."""

# pyright: reportMissingImports=false
from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.integrations.bridge.config import BridgeTeacher
from nemo_xtoken.integrations.bridge.export import export
from nemo_xtoken.integrations.bridge.teacher import initial_projection_path
from nemo_xtoken.integrations.megatron.learnt_projection import learnt_projection_path
from nemo_xtoken.projection import ProjectionMatrix
from tests.bridge import own_loop, tiny
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

Lines = list[dict[str, float]]
STEPS, HALF = 6, 3
NAMES = ("loss", "ce", "kd", "kd/qwen", "kd/own", "kd/other", "ratio", "grad_norm", "teacher_entropy/own")


@pytest.fixture(scope="module")
def own(folder: Path) -> Lines:
    """The curve of our own loop, and the W it learnt as a file in `folder`."""
    return run_ranks(1, own_loop.curve, folder, STEPS, tiny.three_teachers(folder), timeout=150)[0]


def run(folder: Path, name: str, **options: object) -> Lines:
    return tiny.run(folder, name, steps=STEPS, teachers=tiny.three_teachers(folder), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def first_half(folder: Path) -> Lines:
    """A run that Bridge ended after half of its steps, saved as `folder / "three_half"`."""
    return run(folder, "three_half", train={"exit_interval": HALF})


def assert_same(lines: Lines, expected: Lines) -> None:
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        for name in NAMES:
            assert line[name] == pytest.approx(other[name], rel=1e-5), name


def exported_weights(folder: Path, name: str) -> np.ndarray:
    out = folder / f"{name}_exported"
    run_ranks(1, export, folder / name, str(folder / "llama"), out, timeout=120)
    return ProjectionMatrix.load(learnt_projection_path(out / "distillation", "qwen")).weights


def test_the_curve_and_w_are_those_of_our_own_loop(folder: Path, own: Lines) -> None:
    lines = run(folder, "three")
    assert_same(lines, own)
    learnt = exported_weights(folder, "three")
    assert learnt == pytest.approx(ProjectionMatrix.load(learnt_projection_path(folder, "qwen")).weights, abs=1e-5)
    before = ProjectionMatrix.load(folder / "projection.safetensors")
    several = (before.indices >= 0).sum(1) > 1
    assert np.abs(learnt - before.weights)[several].max() > 0.01
    assert (learnt[~several] == before.weights[~several]).all()


def test_the_loss_is_of_the_weighted_sum(own: Lines) -> None:
    for before, line in pairwise(own):
        assert line["kd"] == pytest.approx(0.7 * line["kd/qwen"] + 0.2 * line["kd/own"] + 0.1 * line["kd/other"])
        assert line["ratio"] == pytest.approx(before["ce"] / before["kd"])


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}, {"dp": 2}], ids=["tp2", "pp2", "dp2"])
def test_the_curve_does_not_depend_on_the_layout(folder: Path, own: Lines, layout: dict[str, int]) -> None:
    name = "_".join(f"three_{key}{value}" for key, value in layout.items())
    assert_same(run(folder, name, **layout), own)
    ours = ProjectionMatrix.load(learnt_projection_path(folder, "qwen")).weights
    assert exported_weights(folder, name) == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("layout", [{}, {"tp": 2}], ids=["as_it_was", "tp2"])
def test_a_run_goes_on_with_w_and_its_optimizer(
    folder: Path, own: Lines, first_half: Lines, layout: dict[str, int]
) -> None:
    assert_same(first_half, own[:HALF])
    name = "_".join(["three_resumed", *layout])
    shutil.copytree(folder / "three_half", folder / name)
    assert_same(run(folder, name, **layout), own[HALF:])
    ours = ProjectionMatrix.load(learnt_projection_path(folder, "qwen")).weights
    assert exported_weights(folder, name) == pytest.approx(ours, abs=1e-5)


def test_a_run_does_not_go_on_with_another_projection(folder: Path, first_half: Lines) -> None:
    assert first_half
    shutil.copytree(folder / "three_half", folder / "three_other_w")
    shutil.copy(folder / "own_projection.safetensors", initial_projection_path(folder / "three_other_w", "qwen"))
    with pytest.raises(ConfigError, match=r"was started with another projection than .*/projection\.safetensors"):
        run(folder, "three_other_w")


def test_validation_has_the_metrics_of_each_by_name(folder: Path) -> None:
    def on_rank() -> Lines:
        teachers = tiny.three_teachers(folder)
        train = {"eval_iters": 1, "eval_interval": 1}
        config = tiny.config(folder, "three_validated", steps=1, teachers=teachers, train=train)
        losses = tiny.Validation()
        tiny.pretrain(config, [losses])
        return losses.lines

    line = run_ranks(1, on_rank, timeout=150)[0][0]
    assert all(line[f"kd/{name}"] > 0 for name in ("qwen", "own", "other"))


def test_a_teacher_that_the_data_has_not_is_one_clear_error(folder: Path) -> None:
    teachers = [BridgeTeacher(name=name, model=str(folder / "qwen3")) for name in ("qwen", "gemma")]
    with pytest.raises(DataError, match="has no teacher 'gemma', it was prepared with qwen, own"):
        tiny.DistillationStep(tiny.config(folder, "three_gemma", teachers=teachers))
    with pytest.raises(ConfigError, match="teachers of one name"):
        tiny.config(folder, "three_twice", teachers=[teachers[0], teachers[0]])
