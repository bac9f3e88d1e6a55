"""The commands of docs/nemo.md, and how the one that trains `tiny_cpu` is killed, goes on, and is exported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import fiddle as fdl
import pytest
import torch
from nemo.collections import llm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_xtoken import tokenizers
from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.data import PreparedData
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.nemo import NemoTeacher, recipes
from nemo_xtoken.integrations.nemo.teachers import build_teacher
from tests.distributed.ranks import run_ranks
from tests.documents import CHECKOUT, commands
from tests.nemo import own_loop

pytestmark = pytest.mark.timeout(600)

NEMO = str(Path(sys.executable).parent / "nemo")
HELP, TRAIN, FOR_GPUS = (words[1:] for words, whole in commands(CHECKOUT / "docs" / "nemo.md") if whole)
"""The page's commands, without their first word."""
STEPS, LONGER = 20, 40
SAVED = 10
"""Steps from one checkpoint to the next."""


def start(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a folder and a process group of its own."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    with (folder / "output").open("a") as output:
        return subprocess.Popen(
            [NEMO, *arguments],
            cwd=folder,
            env=environment,
            text=True,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[str], folder: Path) -> None:
    process.wait(timeout=580)
    assert process.returncode == 0, (folder / "output").read_text()[-3000:]


def checkpoints(folder: Path) -> list[Path]:
    """Complete ones."""
    found = [path for path in (folder / "tiny_cpu/checkpoints").glob("*") if path.is_dir()]
    return [path for path in found if not path.with_name(f"{path.name}-unfinished").exists()]


def kill_at_first_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    while not checkpoints(folder):
        assert process.poll() is None, (folder / "output").read_text()[-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` has 20 steps on one rank; `two` 40 on two, by a command that is killed and given again."""
    folder = tmp_path_factory.mktemp("nemo-command")
    assert f"recipe.trainer.max_steps={STEPS}" in TRAIN
    finish(start(folder / "one", TRAIN), folder / "one")
    on_two = [*TRAIN[:2], "recipe=tiny_cpu(tp=2)", f"recipe.trainer.max_steps={LONGER}", "-y"]
    killed = start(folder / "two", on_two)
    kill_at_first_checkpoint(killed, folder / "two")
    assert LONGER - 1 not in losses(folder / "two")
    finish(start(folder / "two", on_two), folder / "two")
    return folder


def losses(folder: Path) -> dict[int, list[float]]:
    """The losses by step in TensorBoard's files of a run; several of a step that was done twice."""
    found: dict[int, list[float]] = {}
    for path in folder.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(path))
        events.Reload()
        if "reduced_train_loss" not in events.Tags()["scalars"]:
            continue  # killed before it wrote
        assert {"kd", "ce", "kd_weight", "tokens_per_second"} <= set(events.Tags()["scalars"])
        for event in events.Scalars("reduced_train_loss"):
            found.setdefault(event.step, []).append(event.value)
    return found


def test_tiny_cpu_has_the_curve_of_our_own_loop_on_one_and_two_ranks_killed_or_not(folder: Path) -> None:
    (ours,) = run_ranks(1, own_loop.curve, folder / "one/tiny_cpu", LONGER)
    wanted = {step: line["loss"] for step, line in enumerate(ours)}
    one, two = losses(folder / "one"), losses(folder / "two")
    assert sorted(one) == list(range(STEPS))
    assert {*range(8), *range(SAVED, LONGER)} <= set(two) <= set(range(LONGER))  # a kill takes what is not on disk yet
    for found in (one, two):
        for step, values in found.items():
            assert values == pytest.approx([wanted[step]] * len(values), rel=1e-5), step
    assert wanted[STEPS - 1] < 0.9 * wanted[0]
    assert len(list((folder / "two").rglob("events.out.tfevents*"))) > 1


def last_checkpoint(folder: Path) -> Path:
    (path,) = (folder / "tiny_cpu/checkpoints").glob("*-last")
    assert (path / "context/io.json").is_file()
    return path


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_exported_model_has_the_students_logits(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder / name)
    checkpoint = last_checkpoint(Path())
    llm.export_ckpt(checkpoint, "hf", tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    tokens = torch.tensor([tokenizer("13+42=55").input_ids])
    assert tokens.tolist() == [tokenizers.load("tiny_cpu/huggingface").encode("13+42=55").ids.tolist()]
    assert tokens.shape[1] == len(["13", "+", "4", "2", "=", "55"])
    (student,) = run_ranks(1, logits_by_megatron, checkpoint, tokens)
    with torch.no_grad():
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()(tokens).logits
    assert exported.numpy() == pytest.approx(student[..., : exported.shape[-1]].numpy(), abs=1e-5)
    assert exported.abs().max() > 0.1


def logits_by_megatron(checkpoint: Path, tokens: torch.Tensor) -> torch.Tensor:
    """[1, s, V] of a NeMo checkpoint, read by megatron-core on one rank."""
    layout = layouts.start(ParallelConfig(), "cpu", seed=1)
    side = PreparedData.open("tiny_cpu/data").manifest.student
    like = fdl.build(recipes.tiny_cpu().model.config)
    model = build_teacher(NemoTeacher(checkpoint=str(checkpoint)), layout, student=like, side=side, seq_length=32)
    assert model is not None
    with torch.no_grad():
        return model(tokens, torch.arange(tokens.shape[1])[None], None) @ head_weight(model).t()


def test_the_nemo_command_lists_what_it_can_do() -> None:
    of_package, of_command = (
        subprocess.Popen([NEMO, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in (["xtoken", "--help"], HELP)
    )
    (package, _), (command, errors) = (process.communicate(timeout=580) for process in (of_package, of_command))
    assert of_command.returncode == of_package.returncode == 0, errors[-2000:]
    assert "distill" in package
    made = vars(recipes).items()
    names = [name for name, it in made if hasattr(it, "__factory__") and it.__module__ == recipes.__name__]
    assert {"llama32_1b_from_qwen3_4b", "nemotron_or_mistral_from_qwen3_32b", "tiny_cpu"} <= set(names)
    assert [name for name in names if name not in command] == []


def test_the_command_for_gpus_builds_what_it_would_start(tmp_path: Path) -> None:
    finish(start(tmp_path / "gpus", [*FOR_GPUS, "--dryrun"]), tmp_path / "gpus")
    built = (tmp_path / "gpus" / "output").read_text()
    assert "RestoreConfig(path='nemo/llama')" in built
    assert "fp8_recipe='tensorwise'" in built
