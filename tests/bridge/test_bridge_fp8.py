"""FP8 inside Bridge: its mixed precision, sequences that are padded for it, a teacher's own, and what is refused."""

# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.bridge.training.mixed_precision import get_mixed_precision_config

from nemo_xtoken.config import Fp8Config, ParallelConfig
from nemo_xtoken.data.padding import Lengths
from nemo_xtoken.errors import ConfigError, UnavailableError
from nemo_xtoken.integrations.bridge import recipes, settings
from nemo_xtoken.integrations.bridge.config import BridgeTeacher
from nemo_xtoken.integrations.bridge.overrides import override
from nemo_xtoken.integrations.bridge.precision import PRECISIONS, mixed_precision
from nemo_xtoken.integrations.bridge.published import published
from nemo_xtoken.integrations.megatron.models import transformer_config
from nemo_xtoken.types import DistillBatch
from tests.bridge import tiny
from tests.distributed.ranks import run_ranks
from tests.distributed.test_megatron_fp8_config import CASES, MODEL

pytestmark = pytest.mark.timeout(300)

Lines = list[dict[str, float]]
MULTIPLE = 80
"""Two sequences of 32 and two of 48 tokens are none: on one rank they have to be of 40 and 80."""

LAYOUTS: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    "one": ({}, 1, (40, 80)),
    "pp2": ({"pp": 2}, 2, (40, 80)),
    "tp2-sp": ({"tp": 2, "model": {"sequence_parallel": True}}, 2, (80, 80)),
    "cp2": ({"model": {"context_parallel_size": 2}}, 2, (80, 80)),
}


def distil_padded(folder: Path, name: str, expected: tuple[int, int], options: dict[str, Any]) -> Lines:
    """In fp32, padded as if tokens had to be a multiple of `MULTIPLE`; with sequences that are longer indeed."""
    shapes: list[tuple[int, int]] = []
    padded = Lengths.padded

    def noted(lengths: Lengths, batch: DistillBatch) -> DistillBatch:
        longer = padded(lengths, batch)
        shapes.append((longer.student_tokens.shape[1], longer.teacher_tokens.shape[1]))
        return longer

    Lengths.padded = noted  # type: ignore[method-assign]
    settings.token_multiple = settings.token_multiple_of = lambda _: MULTIPLE
    lines = tiny.distil(tiny.config(folder, name, steps=3, **options))
    assert set(shapes) == {expected}
    return lines


@pytest.mark.parametrize("name", LAYOUTS)
def test_padding_changes_nothing(folder: Path, curve: Lines, name: str) -> None:
    options, ranks, expected = LAYOUTS[name]
    lines = run_ranks(ranks, distil_padded, folder, f"padded_{name}", expected, options, timeout=200)[-1]
    assert len(lines) == 3
    for line, other in zip(lines, curve, strict=False):
        for key in ("loss", "ce", "kd", "ratio", "grad_norm", "teacher_entropy"):
            assert line[key] == pytest.approx(other[key], rel=1e-5), key


def test_lengths_follow_from_the_fp8_of_each(folder: Path) -> None:
    teacher = BridgeTeacher(model=str(folder / "qwen3"), fp8=Fp8Config(recipe="mxfp8"))
    config = tiny.config(folder, "lengths", teachers=[teacher], train={"micro_batch_size": 1, "global_batch_size": 1})
    assert (config.model.seq_length, lengths(config)) == (32, (32, 64))
    config = override(
        config, ["data.student_sequence_length=40", "mixed_precision=bf16_with_fp8_current_scaling_mixed"]
    )
    settings.settle(config)
    assert (config.model.seq_length, lengths(config)) == (48, (48, 64))
    config.mixed_precision, config.model.fp8, config.model.fp8_recipe = None, "e4m3", "mxfp8"
    settings.settle(config)
    assert (config.model.seq_length, lengths(config)) == (64, (64, 64))
    config = override(config, ["teachers.0.fp8=null"])
    settings.settle(config)
    assert lengths(config) == (64, 48)
    config.model.fp8 = None
    settings.settle(config)
    assert (config.model.seq_length, lengths(config)) == (40, (40, 48))


def lengths(config: Any) -> tuple[int, ...]:
    """Of the sequences of a micro batch of the training data."""
    training, _, _ = config.dataset.build_datasets(None)
    batch = training.collate_fn([training[0]])
    return batch.student_tokens.shape[1], *(pair.teacher_tokens.shape[1] for pair in batch.pairs)


@pytest.mark.parametrize("name", CASES)
def test_every_setting_goes_through_bridges_mixed_precision(name: str) -> None:
    fp8, expected = CASES[name]
    provider = published("Qwen/Qwen3-4B")
    mixed_precision(fp8).setup(provider)
    assert {field: getattr(provider, field) for field in expected} == expected
    assert provider.bf16
    assert provider.params_dtype == torch.bfloat16
    assert {field: getattr(own_config(fp8), field) for field in expected} == expected


def own_config(fp8: Fp8Config) -> Any:
    return transformer_config(MODEL, ParallelConfig(), "cpu", fp8=fp8)


SAME = {
    "current": Fp8Config(recipe="current", first_layers_in_bf16=1, last_layers_in_bf16=1, fp8_parameters=True),
    "delayed": Fp8Config(recipe="delayed", fp8_parameters=True),
    "blockwise": Fp8Config(recipe="blockwise", format="hybrid"),
    "mxfp8": Fp8Config(recipe="mxfp8", fp8_parameters=True),
}


@pytest.mark.parametrize("recipe", SAME)
def test_bridges_names_are_settings_of_ours(recipe: str) -> None:
    assert set(SAME) == set(PRECISIONS)
    made = {key: vars(mixed_precision(fp8)) for key, fp8 in SAME.items()}
    theirs = vars(get_mixed_precision_config(PRECISIONS[recipe]))
    # Bridge leaves what its recipe has no use of at other values.
    unused = set() if recipe == "delayed" else {"fp8_amax_history_len", "fp8_amax_compute_algo"}
    differing = {key: {field for field in theirs if own[field] != theirs[field]} - unused for key, own in made.items()}
    assert not differing.pop(recipe)
    assert all(differing.values())


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name != "tiny_cpu"])
@pytest.mark.parametrize("recipe", SAME)
def test_recipes_take_fp8_settings(name: str, recipe: str) -> None:
    config = recipes.RECIPES[name](precision=replace(SAME[recipe], fp8_parameters=False))
    config.mixed_precision.finalize()
    config.mixed_precision.setup(config.model, config.optimizer, config.ddp)
    assert config.model.fp8_recipe == get_mixed_precision_config(PRECISIONS[recipe]).fp8_recipe
    assert not config.model.fp8_param


def test_a_teacher_in_fp8_without_transformer_engine_is_refused(folder: Path) -> None:
    teacher = BridgeTeacher(model=str(folder / "qwen3"), fp8=Fp8Config(recipe="current"))
    with pytest.raises(UnavailableError, match=r"recipe tensorwise, which needs transformer-engine .* without FP8"):
        run_ranks(1, distil, folder, "refused_teacher", {"teachers": [teacher]}, timeout=200)


def distil(folder: Path, name: str, options: dict[str, Any]) -> None:
    tiny.distil(tiny.config(folder, name, steps=1, **options))


@pytest.mark.parametrize("recipe", SAME)
def test_a_student_in_fp8_without_transformer_engine_is_refused(folder: Path, recipe: str) -> None:
    def set_precision(config: Any) -> None:
        config.mixed_precision = mixed_precision(SAME[recipe])

    with pytest.raises(UnavailableError, match=r"which needs transformer-engine .* without FP8"):
        run_ranks(1, distil, folder, f"refused_{recipe}", {"change": set_precision}, timeout=200)


def test_fp8_is_said_in_a_teachers_own_key(folder: Path) -> None:
    teacher = BridgeTeacher(name="a", model=str(folder / "qwen3"), options={"fp8": "hybrid"})
    with pytest.raises(ConfigError, match="teacher 'a': its provider, or its options, has fp8=hybrid; say it in"):
        run_ranks(1, distil, folder, "refused_options", {"teachers": [teacher]}, timeout=200)


def test_what_these_models_can_not_do_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="teacher 'a': delayed scaling learns its scales from training passes"):
        BridgeTeacher(name="a", model="b", fp8=Fp8Config(recipe="delayed"))
    with pytest.raises(ConfigError, match=r"teacher 'a': fp8\.backend emulate is for `nemo-xtoken train`"):
        BridgeTeacher(name="a", model="b", fp8=Fp8Config(recipe="current", backend="emulate"))
    with pytest.raises(ConfigError, match=r"mixed_precision: fp8\.backend emulate"):
        mixed_precision(Fp8Config(recipe="current", backend="emulate"))
    config = tiny.config(folder, "refused")
    for name, message in (("bf16_with_nvfp4_mixed", r"FP4 .* FP8 alone"), ("fp7", "mixed_precision: Unknown .*'fp7'")):
        config.mixed_precision = name
        with pytest.raises(ConfigError, match=message):
            settings.settle(config)
