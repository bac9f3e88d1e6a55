"""Plans: formulas against numbers known from elsewhere, and the choice between kinds of teachers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from nemo_xtoken.cli.app import run
from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.planning import HARDWARE, Plan, make_plan
from nemo_xtoken.planning.kinds import OWN_LAYOUT, Estimate
from nemo_xtoken.planning.shapes import Shape
from nemo_xtoken.teachers.cache import Storage

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = EXAMPLES / "plan_llama32_1b_from_qwen3_4b.yaml"
LARGE = EXAMPLES / "plan_7b_from_72b.yaml"


def plan(path: Path, gpus: int, **options: object) -> tuple[Plan, dict[str, Estimate]]:
    made = make_plan(load_run(path), gpus, HARDWARE["h100"], **options)  # type: ignore[arg-type]
    return made, {estimate.kind: estimate for estimate in made.estimates}


@pytest.mark.parametrize(
    ("path", "student", "teacher"),
    [(SMALL, 1_235_814_400, None), (LARGE, 7_248_023_552, 72_705_384_448)],
)
def test_parameters_are_those_of_the_published_models(path: Path, student: int, teacher: int | None) -> None:
    """Llama-3.2-1B and Mistral-7B-v0.3 exactly; Qwen2.5-72B has 72,706,203,648 with the biases that ours lacks."""
    config = load_run(path)
    assert Shape(config.student, config.student.vocab_size or 0).parameters == student
    model = config.teachers[0].model
    if teacher is not None:
        found = Shape(model, model.vocab_size or 0).parameters
        assert found == teacher
        assert 72_706_203_648 - found == 80 * (8192 + 2 * 8 * 128)


def test_a_step_of_the_student_takes_six_flops_per_parameter_and_token() -> None:
    config = load_run(SMALL)
    shape = Shape(config.student, 128256)
    flops = 3 * (shape.forward_flops(4096) + shape.head_flops)
    attention = 3 * 16 * 2 * 4096 * 2048
    assert flops - attention == pytest.approx(6 * shape.parameters, rel=1e-4)


def test_the_memory_of_a_gpu_by_hand() -> None:
    _, kinds = plan(SMALL, 8)
    memory = kinds["colocated"].memory
    assert kinds["colocated"].student == (8, 1, 1, 8)
    parameters = 1_235_814_400
    assert (memory.weights, memory.gradients) == (2 * parameters, 4 * parameters)
    assert memory.optimizer == 12 * parameters / 8
    assert memory.teacher_heads == 151936 * 2560 * 2
    assert memory.hidden_states == 4096 * (2048 + 2560) * 2
    assert memory.loss_blocks == 256 * 2**20 + 4 * 128256 * 2048


def test_kinds_differ_in_what_they_move() -> None:
    made, kinds = plan(SMALL, 16)
    tokens = 768 * 4096
    assert made.tokens_per_step == tokens
    assert kinds["remote"].wire_bytes == tokens * 2560 * 2 * kinds["remote"].student[1]
    assert kinds["cached"].disk_bytes == tokens * 2560 * 2
    assert kinds["cached"].step_seconds < kinds["colocated"].step_seconds
    assert kinds["colocated"].step_seconds == kinds["colocated"].student_seconds + kinds["colocated"].teacher_seconds
    remote = kinds["remote"]
    assert remote.student[0] + remote.teacher[0] <= 16
    assert remote.step_seconds == max(remote.student_seconds, remote.teacher_seconds)
    assert made.best == "colocated"
    assert "if the data were read again" in made.why
    fp8, _ = plan(SMALL, 16, storage=Storage(stored_as="fp8"))
    assert fp8.cache_bytes_per_token == 2560 * (1 + 4 / 128)


def test_a_teacher_that_fits_nowhere_is_not_planned_with() -> None:
    made, kinds = plan(LARGE, 1024)
    assert kinds["colocated"].student[1] == 4  # 36 GB of the teacher on each GPU; 73 GB at tp2 would be too much
    assert made.parameters["qwen25_72b"] > 72e9
    few, kinds = plan(LARGE, 4)
    assert "do not fit" in kinds["colocated"].why_not
    assert "fits into no number" in kinds["remote"].why_not
    own = kinds[OWN_LAYOUT]
    assert (few.best, own.offload) == (OWN_LAYOUT, "both")
    assert own.teacher[1] * own.teacher[2] == 4
    # The fuller turn is the teacher's: its 36 GB leave no room for what the student's own has besides.
    assert own.memory.teacher_weights > 36e9
    assert (own.memory.activations, own.memory.loss_blocks) == (0, 0)
    assert own.memory.total < 72e9
    with pytest.raises(ConfigError, match="nothing fits: colocated: student and teacher together"):
        plan(LARGE, 1)


def test_a_layout_of_its_own_that_the_run_has_is_planned_for() -> None:
    config = load_run(LARGE)
    own = ParallelConfig(tensor_model_parallel_size=4, pipeline_model_parallel_size=2)
    config = replace(config, parallel=replace(config.parallel, tensor_model_parallel_size=8, data_parallel_size=1))
    (teacher,) = config.teachers

    def planned(offload: Literal["hidden", "parameters", "both"] | None) -> Estimate:
        changed = replace(teacher, kind="colocated", parallel=own, offload=offload)
        made = make_plan(replace(config, teachers=(changed,)), 64, HARDWARE["h100"])
        return next(estimate for estimate in made.estimates if estimate.kind == OWN_LAYOUT)

    plain, hidden, both = planned(None), planned("hidden"), planned("both")
    assert plain.teacher == hidden.teacher == both.teacher == (64, 4, 2, 8)
    assert (plain.offload, hidden.offload, both.offload) == ("", "hidden", "both")
    last_stage = Shape(teacher.model, teacher.model.vocab_size or 0, 4, 2).largest_stage
    assert plain.memory.teacher_weights == 2 * last_stage
    tokens, (gpus, tp, _, dp) = config.train.global_batch_size * 4096, plain.student
    assert gpus == 64
    assert plain.memory.teacher_hidden == tokens // (dp * tp) * 8192 * 2
    assert hidden.memory.teacher_hidden < plain.memory.teacher_hidden / 4
    assert plain.teacher_seconds < hidden.teacher_seconds < both.teacher_seconds


def test_without_a_distributed_optimizer_every_gpu_has_all_of_it() -> None:
    config = load_run(SMALL)
    whole = replace(config, parallel=replace(config.parallel, use_distributed_optimizer=False))
    (estimate, *_) = make_plan(whole, 8, HARDWARE["h100"]).estimates
    assert estimate.memory.optimizer == 12 * estimate.memory.weights / 2


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(SMALL), "--gpus", "16", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["best"] == "colocated"
    assert content["estimates"][0]["memory"]["total"] > 20e9
    assert run(["plan", str(SMALL), "--gpus", "16", "data.teacher_sequence_length=5120"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "take colocated" in printed
    assert "parameters: student 1.24 B, qwen3_4b 3.67 B" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gpus", "0"], "--gpus must be positive"),
        (["--gpus", "8", "--hardware", "tpu"], "expected one of a100, h100, h200, b200, got tpu"),
        (["--gpus", "8", "student.vocab_size=null"], "student.vocab_size is null and the data is not prepared here"),
    ],
)
def test_wrong_use_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert run(["plan", str(SMALL), *arguments]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_control_without_a_teacher_is_planned_alone() -> None:
    config: RunConfig = replace(load_run(SMALL), teachers=())
    made = make_plan(config, 8, HARDWARE["h100"])
    assert [estimate.kind for estimate in made.estimates] == ["colocated"]
    assert made.estimates[0].teacher_seconds == 0
