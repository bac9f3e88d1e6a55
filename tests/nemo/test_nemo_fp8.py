"""FP8 inside NeMo: its precision plugin, sequences that are padded for it, a teacher's own, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fiddle as fdl
import pytest
from nemo import lightning as nl
from nemo.collections.llm.gpt.model.llama import LlamaConfig
from nemo.lightning.pytorch.plugins.mixed_precision import update_config_with_dtype_overrides

from nemo_xtoken.config import Fp8Config, ParallelConfig, RunConfig
from nemo_xtoken.data.padding import Lengths
from nemo_xtoken.errors import CheckpointError, ConfigError, UnavailableError
from nemo_xtoken.integrations.megatron import launch
from nemo_xtoken.integrations.megatron.fp8_backend import transformer_fields
from nemo_xtoken.integrations.megatron.inputs import check_unchanged
from nemo_xtoken.integrations.megatron.models import transformer_config
from nemo_xtoken.integrations.nemo import DistillationConfig, NemoTeacher
from nemo_xtoken.integrations.nemo import run as nemo_run_room
from nemo_xtoken.integrations.nemo.cpu_device import PLAIN_KERNELS
from nemo_xtoken.integrations.nemo.precision import PRECISIONS, precision_plugin
from nemo_xtoken.integrations.nemo.run import lengths_of
from nemo_xtoken.integrations.nemo.teachers import teacher_config
from nemo_xtoken.types import DistillBatch
from tests.distributed import toy
from tests.distributed.test_megatron_fp8_config import CASES, MODEL
from tests.nemo import toy as nemo_toy
from tests.nemo.nemo_ranks import rendezvous, run_nemo_ranks

pytestmark = pytest.mark.timeout(300)
MULTIPLE = 80
"""Two sequences of 32 and two of 48 tokens are none: on one rank they have to be of 40 and 80."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(toy.teacher_run(folder))
    launch(our_run(folder, "ours"))
    return folder


def llama(**fields: Any) -> LlamaConfig:
    return LlamaConfig(
        num_layers=4, hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, **PLAIN_KERNELS, **fields
    )


def our_run(folder: Path, name: str, parallel: ParallelConfig | None = None) -> RunConfig:
    config = toy.student_run(folder, name, train=replace(toy.TRAIN, steps=3, checkpoint_interval=0), parallel=parallel)
    rate = config.optimizer.lr
    optimizer = replace(config.optimizer, lr_warmup_steps=0, lr_decay_style="constant", min_lr=rate)
    return replace(config, optimizer=optimizer)


def fit(config: RunConfig, **trainer_changes: Any) -> list[dict[str, float]]:
    nemo_toy.run_folder(config)
    curve = nemo_toy.Curve()
    trainer = nemo_toy.trainer(config, [curve], **trainer_changes)
    trainer.strategy.store = rendezvous()
    trainer.fit(nemo_toy.student_model(config), nemo_toy.data(config))
    return curve.lines


def fit_padded(config: RunConfig, expected: tuple[int, int]) -> list[dict[str, float]]:
    """In fp32, padded as if tokens had to be a multiple of `MULTIPLE`; with sequences that are longer indeed."""
    shapes: list[tuple[int, int]] = []
    padded = Lengths.padded

    def noted(lengths: Lengths, batch: DistillBatch) -> DistillBatch:
        longer = padded(lengths, batch)
        shapes.append((longer.student_tokens.shape[1], longer.teacher_tokens.shape[1]))
        return longer

    Lengths.padded = noted  # type: ignore[method-assign]
    nemo_run_room.token_multiple = nemo_run_room.token_multiple_of = lambda _: MULTIPLE
    lines = fit(config)
    assert set(shapes) == {expected}
    return lines


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        (ParallelConfig(), (40, 80)),
        (ParallelConfig(pipeline_model_parallel_size=2), (40, 80)),
        (ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True), (80, 80)),
        (ParallelConfig(context_parallel_size=2), (80, 80)),
    ],
    ids=["one", "pp2", "tp2-sp", "cp2"],
)
def test_padding_changes_nothing(folder: Path, parallel: ParallelConfig, expected: tuple[int, int]) -> None:
    ours = toy.metrics(our_run(folder, "ours"))
    lines = run_nemo_ranks(parallel.world_size, fit_padded, our_run(folder, "padded", parallel), expected)[-1]
    assert len(lines) == len(ours) == 3
    for our, line in zip(ours, lines, strict=True):
        for name in ("loss", "ce", "kd", "ratio", "teacher_entropy"):
            assert line[name] == pytest.approx(our[name], rel=1e-5), name


@pytest.mark.parametrize(("recipe", "expected"), [(None, (32, 48)), ("blockwise", (32, 48)), ("mxfp8", (32, 64))])
def test_lengths_follow_from_the_fp8_of_each(folder: Path, recipe: Any, expected: tuple[int, int]) -> None:
    fp8 = None if recipe is None else Fp8Config(recipe=recipe)
    config = replace(our_run(folder, "lengths"), train=replace(toy.TRAIN, micro_batch_size=1))
    student = SimpleNamespace(**{"fp8": None, **transformer_fields(fp8)})
    teacher = NemoTeacher(config=llama(), fp8=fp8)
    model = SimpleNamespace(config=student, distillation=DistillationConfig(teachers=[teacher]))
    assert lengths_of(model, nemo_toy.data(config), ParallelConfig()) == Lengths(
        student=expected[0], teachers=expected[1:]
    )


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name != "bf16"])
def test_a_student_in_fp8_without_transformer_engine_is_refused(folder: Path, name: str) -> None:
    plugin = fdl.build(PRECISIONS[name]())
    recipe = plugin.dtype_config.fp8_recipe
    with pytest.raises(UnavailableError, match=rf"recipe {recipe}, which needs transformer-engine .* without FP8"):
        run_nemo_ranks(1, fit_with, our_run(folder, f"refused_{name}"), plugin)


def fit_with(config: RunConfig, plugin: Any) -> None:
    fit(config, plugins=plugin)


def test_fp4_is_refused(folder: Path) -> None:
    plugin = nl.MegatronMixedPrecision(precision="bf16-mixed", fp4="e2m1")
    with pytest.raises(ConfigError, match=r"fp4=e2m1: .* FP8 alone"):
        run_nemo_ranks(1, fit_with, our_run(folder, "refused_fp4"), plugin)


@pytest.mark.parametrize("name", CASES)
def test_every_setting_arrives_in_this_megatron_cores_config(name: str) -> None:
    fp8, expected = CASES[name]
    config = transformer_config(MODEL, ParallelConfig(), "cpu", fp8=fp8)
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", CASES)
def test_every_setting_goes_through_the_precision_plugin(name: str) -> None:
    fp8, expected = CASES[name]
    plugin = fdl.build(precision_plugin(fp8))
    config = update_config_with_dtype_overrides(plugin.dtype_config, llama())
    assert {field: getattr(config, field) for field in expected} == expected
    assert config.bf16


SAME = {
    "fp8": Fp8Config(recipe="current", first_layers_in_bf16=1, last_layers_in_bf16=1, fp8_parameters=True),
    "fp8_delayed": Fp8Config(recipe="delayed", fp8_parameters=True),
    "fp8_blockwise": Fp8Config(recipe="blockwise", format="hybrid"),
    "mxfp8": Fp8Config(recipe="mxfp8", fp8_parameters=True),
}


@pytest.mark.parametrize("name", SAME)
def test_nemos_precisions_are_settings_of_ours(name: str) -> None:
    assert {*SAME, "bf16"} == set(PRECISIONS)
    made = {key: vars(fdl.build(precision_plugin(fp8)).dtype_config) for key, fp8 in SAME.items()}
    theirs = vars(fdl.build(PRECISIONS[name]()).dtype_config)
    # NeMo leaves what its recipe has no use of at other values.
    unused = set() if name == "fp8_delayed" else {"fp8_amax_history_len", "fp8_amax_compute_algo"}
    differing = {key: {field for field in theirs if own[field] != theirs[field]} - unused for key, own in made.items()}
    assert not differing.pop(name)
    assert all(differing.values())


def test_the_emulation_is_refused_here() -> None:
    with pytest.raises(ConfigError, match=r"the precision plugin: fp8\.backend emulate is for `nemo-xtoken train`"):
        precision_plugin(Fp8Config(recipe="current", backend="emulate"))
    with pytest.raises(ConfigError, match=r"teacher 'a': fp8\.backend emulate"):
        NemoTeacher(name="a", checkpoint="b", fp8=Fp8Config(recipe="current", backend="emulate"))


def test_a_teacher_has_its_own_fp8_and_never_the_students(folder: Path) -> None:
    student = llama(fp8="hybrid", fp8_recipe="delayed", params_dtype="bf16", bf16=True)
    layout = SimpleNamespace(parallel=ParallelConfig())
    own: Any = layout
    plain = teacher_config(NemoTeacher(config=llama(fp8="hybrid")), own, student, 48)
    assert plain.fp8 is None
    rounded = teacher_config(NemoTeacher(config=llama(), fp8=Fp8Config(recipe="mxfp8")), own, student, 48)
    assert (rounded.fp8, rounded.fp8_recipe, rounded.bf16) == ("e4m3", "mxfp8", True)
    with pytest.raises(ConfigError, match="teacher 'a': delayed scaling learns its scales from training passes"):
        NemoTeacher(name="a", checkpoint="b", fp8=Fp8Config(recipe="delayed"))


def test_a_teacher_in_fp8_without_transformer_engine_is_refused(folder: Path) -> None:
    with pytest.raises(UnavailableError, match=r"recipe tensorwise, which needs transformer-engine .* without FP8"):
        run_nemo_ranks(1, fit_with_teacher, our_run(folder, "refused_teacher"))


def fit_with_teacher(config: RunConfig) -> None:
    student_model = nemo_toy.student_model

    def changed(config: RunConfig) -> Any:
        model = student_model(config)
        model.distillation.teachers[0].fp8 = Fp8Config(recipe="current")
        return model

    nemo_toy.student_model = changed  # type: ignore[assignment]
    fit(config)


def test_a_run_does_not_go_on_with_another_fp8_of_its_teacher(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemo_run_room, "_teacher", lambda *_: (None, "the same W"))
    data = nemo_toy.data(our_run(folder, "resumed"))

    def inputs(fp8: Fp8Config | None) -> dict[str, str]:
        teacher = NemoTeacher(name="a", checkpoint="b", fp8=fp8)
        model = SimpleNamespace(distillation=DistillationConfig(teachers=[teacher]))
        trainer = SimpleNamespace(datamodule=data)
        layout: Any = None
        return nemo_run_room._teachers(model, trainer, layout, data.manifests[0])[1]

    plain, current, mxfp8 = inputs(None), inputs(Fp8Config(recipe="current")), inputs(Fp8Config(recipe="mxfp8"))
    for stored, now in ((plain, current), (current, plain), (current, mxfp8)):
        with pytest.raises(CheckpointError, match="was started with another fp8 of a "):
            check_unchanged(stored, now, folder)
    check_unchanged(current, dict(current), folder)
