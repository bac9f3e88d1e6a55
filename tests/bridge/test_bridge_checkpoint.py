"""Checkpoints of a distillation inside Bridge: resume, another layout, what is in them, and the way to Hugging Face."""

# pyright: reportMissingImports=false
from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_xtoken.cli.app import run as run_cli
from nemo_xtoken.config import BalanceConfig, Fp8Config, LossConfig
from nemo_xtoken.errors import CheckpointError, ConfigError
from nemo_xtoken.integrations.bridge import recipes, to_hugging_face
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer
from nemo_xtoken.integrations.bridge.export import export
from nemo_xtoken.integrations.bridge.going_on import check_goes_on
from nemo_xtoken.integrations.bridge.overrides import override
from tests.bridge import tiny
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

Lines = list[dict[str, float]]
HALF = tiny.STEPS // 2


@pytest.fixture(scope="module")
def first_half(folder: Path) -> Lines:
    """A run that Bridge ended after half of its steps, saved as `folder / "half"`."""
    return tiny.run(folder, "half", train={"exit_interval": HALF})


@pytest.fixture(scope="module")
def exported(folder: Path, curve: Lines) -> Path:
    """The student after 20 steps, exported."""
    del curve
    out = folder / "exported"
    run_ranks(1, export, folder / "one_rank", str(folder / "llama"), out, timeout=120)
    return out


def copy_of(folder: Path, name: str) -> str:
    shutil.copytree(folder / "half", folder / name)
    return name


def test_a_resumed_run_has_the_curve_of_one_that_was_not_stopped(folder: Path, curve: Lines, first_half: Lines) -> None:
    assert first_half == curve[:HALF]
    resumed = tiny.run(folder, copy_of(folder, "resumed"))
    assert resumed == curve[HALF:]
    ratio_of_the_same_step = curve[HALF]["ce"] / curve[HALF]["kd"]  # what a run without the balance would measure
    assert abs(resumed[0]["ratio"] / ratio_of_the_same_step - 1) > 1e-3


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}], ids=["tp2", "pp2"])
def test_a_run_goes_on_in_another_layout(folder: Path, curve: Lines, first_half: Lines, layout: dict[str, int]) -> None:
    assert first_half
    name = "_".join(f"resumed_{key}" for key in layout)
    resumed = tiny.run(folder, copy_of(folder, name), **layout)
    for line, other in zip(resumed, curve[HALF:], strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-6)


def with_teacher(folder: Path, name: str = "half", **changes: Any) -> DistillationContainer:
    path = {"model": str(folder / "qwen3"), "projection": str(folder / "projection.safetensors")}
    return tiny.config(folder, name, teachers=[BridgeTeacher(**{**path, **changes})])


def with_data(folder: Path, **changes: Any) -> DistillationContainer:
    config = with_teacher(folder)
    config.dataset.data = replace(config.dataset.data, **changes)
    return config


CHANGES: dict[str, Callable[[Path], DistillationContainer]] = {
    "teachers.0.fp8": lambda folder: with_teacher(folder, fp8=Fp8Config(recipe="current")),
    "teachers.0.weight": lambda folder: with_teacher(folder, weight=2.0),
    "teachers.0.loss.mode": lambda folder: with_teacher(folder, loss=LossConfig(mode="gold")),
    "teachers.0.model": lambda folder: with_teacher(folder, model=str(folder / "qwen2")),
    "teachers": lambda folder: tiny.config(folder, "half", teacher=None),
    "balance.mode": lambda folder: tiny.config(folder, "half", balance=BalanceConfig(mode="fixed")),
    "data.seed": lambda folder: with_data(folder, seed=7),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_run_does_not_go_on_as_another_distillation(folder: Path, first_half: Lines, key: str) -> None:
    assert first_half
    tiny.DistillationStep(with_teacher(folder))
    tiny.DistillationStep(with_data(folder, validation_path=None))
    with pytest.raises(ConfigError, match=f"half holds a run with another {key}: give back the old value"):
        tiny.DistillationStep(CHANGES[key](folder))
    other = CHANGES[key](folder)
    other.checkpoint.load = str(folder / "no_checkpoint")
    tiny.DistillationStep(other)


def test_each_setting_of_a_teachers_fp8_is_compared(folder: Path) -> None:
    before = with_teacher(folder, "in_fp8", fp8=Fp8Config(recipe="mxfp8"))
    store(before)
    tiny.DistillationStep(with_teacher(folder, "in_fp8", fp8=Fp8Config(recipe="mxfp8")))
    with pytest.raises(ConfigError, match=r"another teachers\.0\.fp8\.recipe: "):
        tiny.DistillationStep(with_teacher(folder, "in_fp8", fp8=Fp8Config(recipe="blockwise")))
    with pytest.raises(ConfigError, match=r"another teachers\.0\.fp8: "):
        tiny.DistillationStep(with_teacher(folder, "in_fp8"))


def test_a_recipes_teacher_is_known_by_the_model_of_its_provider(folder: Path) -> None:
    config = recipes.llama32_1b_from_qwen3_4b_8gpu(str(folder / "data"))
    config.checkpoint.save = config.checkpoint.load = str(folder / "by_recipe")
    store(config)
    check_goes_on(config)
    override(config, ["teachers.0.model=Qwen/Qwen3-8B"])
    with pytest.raises(ConfigError, match=r"another teachers\.0\.model: "):
        check_goes_on(config)


def store(config: DistillationContainer) -> None:
    """What a checkpoint of this config has of it."""
    iteration = Path(str(config.checkpoint.save)) / "iter_0000001"
    iteration.mkdir(parents=True)
    (iteration.parent / "latest_checkpointed_iteration.txt").write_text("1")
    config.to_yaml(str(iteration / "run_config.yaml"))


def test_the_checkpoint_has_the_student_and_the_balance_alone(folder: Path, first_half: Lines) -> None:
    def stored() -> tuple[set[str], dict[str, tuple[int, ...]]]:
        found = dist_checkpointing.load_tensors_metadata(str(folder / "half" / f"iter_{HALF:07d}"))
        shapes = {name: tuple(tensor.global_shape) for name, tensor in found.items()}
        return set(found), shapes

    ((names, shapes),) = run_ranks(1, stored)
    model = {name for name in names if not name.startswith(("optimizer", "rng"))}
    assert "distillation_balance.ratio" in model
    assert shapes["embedding.word_embeddings.weight"] == (336, 32)
    assert not any(24 in shapes[name] for name in model if name.endswith("layernorm.weight")), "the teacher is in it"
    last = first_half[-1]
    ratio = run_ranks(1, load_ratio, folder / "half" / f"iter_{HALF:07d}")[0]
    assert ratio == pytest.approx(last["ce"] / last["kd"], rel=1e-6)


def load_ratio(iteration: Path) -> float:
    from megatron.core import parallel_state

    from nemo_xtoken.config import BalanceConfig
    from nemo_xtoken.integrations.bridge.student import BalanceInCheckpoint
    from nemo_xtoken.integrations.megatron.balance import Balance

    parallel_state.initialize_model_parallel()
    balance = Balance(BalanceConfig())
    module = BalanceInCheckpoint(balance)
    loaded: Any = dist_checkpointing.load(module.sharded_state_dict("distillation_balance."), str(iteration))
    module.load_state_dict({"ratio": loaded["distillation_balance.ratio"]})
    assert balance.ratio is not None
    return balance.ratio


def test_the_exported_student_has_the_logits_of_the_trained_one(folder: Path, exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    tokens = torch.tensor([tokenizer.encode("17+25=42, The library has 201 books")])
    expected = run_ranks(1, tiny.logits_of_checkpoint, folder, "one_rank", tokens)[0]
    with torch.no_grad():
        logits = model(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    untrained = AutoModelForCausalLM.from_pretrained(folder / "llama")
    with torch.no_grad():
        assert (untrained(tokens).logits - logits).abs().max() > 0.1
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder / "llama").get_vocab()
    beside = exported / "distillation"
    assert (beside / "run_config.yaml").is_file()
    assert (beside / "projection.safetensors").read_bytes() == (folder / "projection.safetensors").read_bytes()


def test_a_checkpoint_that_is_not_there_or_of_another_model_is_one_clear_error(folder: Path, curve: Lines) -> None:
    del curve
    with pytest.raises(CheckpointError, match="expected a checkpoint directory of Megatron-Bridge"):
        export(folder / "nowhere", str(folder / "llama"), folder / "out")
    with pytest.raises(CheckpointError, match=r"is not of a student made from .*qwen2: .* is not in it with shape"):
        run_ranks(1, export, folder / "one_rank", str(folder / "qwen2"), folder / "out")


def test_export_is_a_command(
    folder: Path, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    out = folder / "by_command"

    def command(checkpoint: str, source: str, to: Path = out) -> int:
        return run_cli(["export", str(folder / checkpoint), str(folder / source), str(to), "--device", "cpu"])

    assert command("nowhere", "llama") == 1
    assert "nowhere: no such directory; expected a checkpoint of Megatron-Bridge" in capsys.readouterr().err
    assert command("data", "llama") == 1
    assert "expected a checkpoint directory of Megatron-Bridge at" in capsys.readouterr().err
    assert command("one_rank", "no_model") == 2
    assert "Megatron-Bridge can't read the source" in capsys.readouterr().err
    assert command("one_rank", "llama", exported) == 2
    assert "is there already; name a directory that is not" in capsys.readouterr().err
    assert run_ranks(1, command, "one_rank", "llama", timeout=120) == [0]
    assert not out.with_name("by_command.unfinished").exists()
    for file in ("model.safetensors", "config.json", "tokenizer.json", "distillation/run_config.yaml"):
        assert (out / file).read_bytes() == (exported / file).read_bytes()
    arguments = [str(folder / "one_rank"), str(folder / "llama"), str(out), "--device", "cpu"]
    assert to_hugging_face.main(arguments) == 2
    assert f"error: {out} is there already" in capsys.readouterr().err


def test_a_run_that_names_no_projection_builds_its_own_once(folder: Path, curve: Lines) -> None:
    (line,) = tiny.run(folder, "own_projection", tp=2, steps=1, projection=None)
    assert line["kd"] == pytest.approx(curve[0]["kd"], rel=1e-5)
    (built,) = (folder / "own_projection").glob("projection-*.safetensors")
    assert built.read_bytes() == (folder / "projection.safetensors").read_bytes()
    run_ranks(1, export, folder / "own_projection", str(folder / "llama"), folder / "exported_with_it")
    assert (folder / "exported_with_it" / "distillation" / built.name).is_file()
