"""Recipes by name: each is built and comes out even, and the one for the CPU trains by the `nemo` command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nemo_run as run
import pytest
from megatron.core.distributed import DistributedDataParallelConfig
from nemo.collections import llm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.nemo import NemoTeacher, PreparedDataModule, distill_recipe, recipes
from nemo_xtoken.integrations.nemo.arithmetic import check_layout

pytestmark = pytest.mark.timeout(600)

LLAMA_VOCABULARY = 128256
NEMO = str(Path(sys.executable).parent / "nemo")


def check(recipe: Any, num_ranks: int) -> int:
    """The data parallel size."""
    model = recipe.model
    return check_layout(model.config, model.distillation.teachers, recipe.data, recipe.trainer.strategy, num_ranks)


@pytest.mark.parametrize("precision", recipes.PRECISIONS)
@pytest.mark.parametrize(
    ("name", "num_ranks", "dp_size", "teachers"),
    [
        ("llama32_1b_from_qwen3_4b", 8, 4, {"qwen3_4b": ("p_kl", 1.0)}),
        ("llama32_1b_from_phi4_mini", 8, 4, {"phi4_mini": ("h_kl", 1.0)}),
        (
            "llama32_1b_from_phi4_mini_and_llama32_3b",
            8,
            4,
            {"phi4_mini": ("h_kl", 0.8), "llama32_3b": ("same_tokenizer", 0.2)},
        ),
        ("nemotron_or_mistral_from_qwen3_32b", 128, 2, {"qwen3_32b": ("p_kl", 1.0)}),
    ],
)
def test_every_recipe_comes_out_even(
    name: str, num_ranks: int, dp_size: int, teachers: dict[str, tuple[str, float]], precision: str
) -> None:
    recipe: Any = getattr(recipes, name)(precision=precision)
    assert check(recipe, num_ranks) == dp_size
    assert recipe.trainer.num_nodes * recipe.trainer.devices == num_ranks
    assert recipe.data.global_batch_size == 768
    assert recipe.data.seq_length == recipe.model.config.seq_length == 4096
    built = {teacher.name: (teacher.loss.mode, teacher.weight) for teacher in recipe.model.distillation.teachers}
    assert built == teachers
    assert recipe.trainer.strategy.ddp.average_in_collective is False
    assert bool(recipe.trainer.plugins.fp8) == (precision != "bf16")


def test_what_does_not_come_out_even_is_named() -> None:
    recipe: Any = recipes.llama32_1b_from_qwen3_4b()
    with pytest.raises(ConfigError, match="the number of ranks, 7, is not divisible"):
        check(recipe, 7)
    with pytest.raises(ConfigError, match="global_batch_size, 768, is not divisible"):
        check(recipe, 8 * 5)
    recipe.trainer.strategy.tensor_model_parallel_size = 16
    with pytest.raises(ConfigError, match="num_query_groups of the student, 8, is not divisible"):
        check(recipe, 16)
    recipe = recipes.nemotron_or_mistral_from_qwen3_32b(student_model="mistral_nemo_12b")
    assert check(recipe, 64) == 1
    recipe.trainer.strategy.context_parallel_size = 3
    with pytest.raises(ConfigError, match="the sequence length of the student, 4096, is not divisible"):
        check(recipe, 96)


def test_an_existing_recipe_is_extended_and_otherwise_left_alone() -> None:
    plain: Any = llm.llama32_1b.pretrain_recipe(name="mine", num_nodes=2)
    plain.trainer.strategy.tensor_model_parallel_size = 4
    plain.trainer.strategy.ddp = run.Config(DistributedDataParallelConfig, average_in_collective=True, bucket_size=7)
    plain.optim.config.lr = 1e-3
    data = run.Config(
        PreparedDataModule, "data", seq_length=2048, teacher_seq_length=3072, micro_batch_size=1, global_batch_size=64
    )
    teacher = run.Config(NemoTeacher, checkpoint="qwen", learn_projection=True)
    extended: Any = distill_recipe(plain, [teacher], data, loss=run.Config(LossConfig, mode="p_kl", teacher_top_k=50))
    assert extended.trainer.strategy.tensor_model_parallel_size == 4
    assert extended.trainer.strategy.ddp.bucket_size == 7
    assert extended.trainer.strategy.ddp.average_in_collective is False
    assert extended.optim == plain.optim
    assert extended.log == plain.log
    assert extended.resume == plain.resume
    assert extended.model.config.seq_length == 2048
    assert extended.model.distillation.teachers[0].loss.teacher_top_k == 50
    names = [callback.__fn_or_cls__.__name__ for callback in extended.trainer.callbacks]
    assert names == ["TimingCallback", "DistillationProgress", "ProjectionSnapshots"]
    assert len(plain.trainer.callbacks) == 1
    assert plain.model.config.seq_length != 2048
    assert plain.trainer.strategy.ddp.average_in_collective is True
    with pytest.raises(ConfigError, match=r"expected a NeMo pretraining recipe"):
        distill_recipe(run.Partial(print), [teacher], data)


def start(folder: Path, recipe: str, steps: int) -> subprocess.Popen[str]:
    """`nemo xtoken distill` of a recipe, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    command = [NEMO, "xtoken", "distill", f"recipe={recipe}", f"recipe.trainer.max_steps={steps}", "-y"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=580)
    assert process.returncode == 0, output[-3000:]
    return output


def losses(folder: Path) -> dict[int, float]:
    """The losses by step in TensorBoard's files of a run, or of its parts."""
    found: dict[int, float] = {}
    for path in sorted(folder.rglob("events.out.tfevents*")):
        events = EventAccumulator(str(path))
        events.Reload()
        assert {"kd", "ce", "kd_weight", "tokens_per_second"} <= set(events.Tags()["scalars"])
        found |= {event.step: event.value for event in events.Scalars("reduced_train_loss")}
    return found


def test_the_nemo_command_trains_tiny_cpu_alike_on_one_and_two_ranks(tmp_path: Path) -> None:
    running = start(tmp_path / "one", "tiny_cpu", 20), start(tmp_path / "two", "tiny_cpu(tp=2)", 20)
    for process in running:
        finish(process)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sorted(one) == sorted(two) == list(range(20))
    assert [one[step] for step in sorted(one)] == pytest.approx([two[step] for step in sorted(two)], rel=1e-5)
    assert one[19] < 0.9 * one[0]
    (checkpoint,) = (tmp_path / "two/tiny_cpu/checkpoints").glob("*-last")
    assert (checkpoint / "context/io.json").is_file()


def test_the_nemo_command_lists_what_it_can_do() -> None:
    shown = subprocess.run([NEMO, "xtoken", "distill", "--help"], capture_output=True, text=True, timeout=580)
    assert shown.returncode == 0, shown.stderr[-2000:]
    made = vars(recipes).items()
    names = [name for name, it in made if hasattr(it, "__factory__") and it.__module__ == recipes.__name__]
    assert {"llama32_1b_from_qwen3_4b", "nemotron_or_mistral_from_qwen3_32b", "tiny_cpu"} <= set(names)
    assert [name for name in names if name not in shown.stdout] == []
