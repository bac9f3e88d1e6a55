"""Recipes by name: each is built and comes out even."""

from __future__ import annotations

from typing import Any

import nemo_run as run
import pytest
from megatron.core.distributed import DistributedDataParallelConfig
from nemo.collections import llm

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.nemo import NemoTeacher, PreparedDataModule, distill_recipe, recipes
from nemo_xtoken.integrations.nemo.arithmetic import check_layout

pytestmark = pytest.mark.timeout(600)

LLAMA_VOCABULARY = 128256


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
