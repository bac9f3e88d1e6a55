"""Training from what was stored of a teacher, against the teacher on the student's ranks."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_xtoken import tokenizers
from nemo_xtoken.config import BalanceConfig, Fp8Config, LossConfig, ParallelConfig, RunConfig, TeacherConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.data import prepare
from nemo_xtoken.errors import CheckpointError, ConfigError, DataError
from nemo_xtoken.integrations.megatron import CacheJob, caching, fill_caches, launch
from nemo_xtoken.integrations.megatron.teacher import ColocatedSource
from nemo_xtoken.teachers.cache import CacheManifest, CacheReader, ShardFile, Storage, cache_directory
from nemo_xtoken.types import DistillBatch
from tests.distributed import toy
from tests.distributed.test_megatron_training import assert_same_curve, curve, train_on_rank
from tests.forked import Forked, nemo_xtoken

LAYOUTS = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "dp2": ParallelConfig(data_parallel_size=2),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "cp2": ParallelConfig(context_parallel_size=2),
}
FIXED = BalanceConfig(mode="fixed", kd_weight=4.0)
FP32, BF16 = Storage(stored_as="fp32"), Storage()
VOCABULARY = 259

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data, W, a trained teacher, its caches, and the student's run with the teacher on its rank."""
    for name, storage in (("fp32", FP32), ("bf16", BF16), ("all", Storage(stored_as="top_k", count=VOCABULARY))):
        fill(cached(toy_folder, "any", name), storage)
    curve(toy.student_run(toy_folder, "colocated"))
    return toy_folder


def fill(config: RunConfig, storage: Storage, **options: Any) -> list[caching.Filled]:
    filled = fill_caches(config, CacheJob(storage=storage, shard_tokens=500, **options))
    assert filled is not None
    return filled


def cached(folder: Path, name: str, cache: str, loss: LossConfig | None = None, **options: Any) -> RunConfig:
    config = toy.student_run(folder, name, **options)
    (teacher,) = config.teachers
    return replace(config, teachers=(replace(teacher, kind="cached", cache=cache, loss=loss or teacher.loss),))


def train_rounded(config: RunConfig) -> None:
    """With the colocated teacher's hidden states rounded to bf16."""

    class Rounded(ColocatedSource):
        def hidden(self, batch: DistillBatch) -> Tensor:
            exact = super().hidden(batch)
            return exact.bfloat16().to(exact.dtype)

    from nemo_xtoken.integrations.megatron import setup

    setup.ColocatedSource = Rounded
    train_on_rank(config)


def test_hidden_states_in_fp32_give_the_teacher_s_own_curve(folder: Path) -> None:
    config = cached(folder, "from_fp32", "fp32")
    (teacher,) = config.teachers
    without_model = replace(config, teachers=(replace(teacher, checkpoint=str(folder / "is_not_there")),))
    assert_same_curve(curve(without_model), toy.metrics(toy.student_run(folder, "colocated")))


def test_hidden_states_in_bf16_give_the_curve_of_rounded_ones(folder: Path) -> None:
    from_cache = curve(cached(folder, "from_bf16", "bf16"))
    assert_same_curve(from_cache, curve(toy.student_run(folder, "rounded"), train_rounded))
    exact = toy.metrics(toy.student_run(folder, "colocated"))
    assert any(a["kd"] != pytest.approx(b["kd"], rel=1e-5) for a, b in zip(from_cache, exact, strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_the_student_reads_the_same(folder: Path, name: str) -> None:
    config = cached(folder, f"cached_{name}", "fp32", parallel=LAYOUTS[name])
    assert_same_curve(curve(config), toy.metrics(toy.student_run(folder, "colocated")))


@pytest.mark.parametrize("name", ["tp2", "cp2"])
def test_probabilities_of_all_tokens_are_the_teacher(folder: Path, name: str) -> None:
    """Stored as float16; with cp each rank reads the rows of its chunks."""
    lines = curve(cached(folder, f"all_{name}", "all", parallel=LAYOUTS[name]))
    for line, exact in zip(lines, toy.metrics(toy.student_run(folder, "colocated")), strict=True):
        assert line["loss"] == pytest.approx(exact["loss"], rel=1e-3)
        assert line["kd"] == pytest.approx(exact["kd"], rel=1e-2)


@pytest.mark.parametrize("cache", ["fp32", "all"])
def test_what_is_stored_says_how_tokens_go_on(folder: Path, cache: str) -> None:
    loss = LossConfig(merge="first", chain=True)
    config = toy.student_run(folder, f"chain_colocated_{cache}")
    exact = curve(replace(config, teachers=(replace(config.teachers[0], loss=loss),)))
    lines = curve(cached(folder, f"chain_{cache}", cache, loss, parallel=LAYOUTS["tp2"]))
    assert exact[0]["kd"] > 1.05 * toy.metrics(toy.student_run(folder, "colocated"))[0]["kd"]  # there are pieces
    for line, expected in zip(lines, exact, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert line["kd"] == pytest.approx(expected["kd"], rel=1e-4 if cache == "fp32" else 1e-2)


def test_draws_train_as_the_teacher_does(folder: Path) -> None:
    loss = LossConfig(merge="first", teacher_top_k=None)
    fill(cached(folder, "any", "draws"), Storage(stored_as="sampled", count=16))
    drawn = curve(cached(folder, "from_draws", "draws", loss, balance=FIXED))
    exact = curve(cached(folder, "first", "fp32", loss, balance=FIXED))
    for line, expected in zip(drawn, exact, strict=True):
        assert line["ce"] == pytest.approx(expected["ce"], rel=0.02)
        # KL and the entropy of the draws: what the student is judged by
        cost, expected_cost = (entry["kd"] + entry["teacher_entropy"] for entry in (line, expected))
        assert cost == pytest.approx(expected_cost, rel=0.05)


def test_a_cached_and_a_colocated_teacher_in_one_run(folder: Path) -> None:
    student = tokenizers.load(toy.student_spec(folder))
    for name in ("sums", "held_out"):
        teachers = {"bytes": tokenizers.load("bytes"), "own": student}
        prepare([folder / f"{name}.jsonl"], folder / f"{name}_both", student, teachers)
    own = replace(toy.student_run(folder, "own_run", train=replace(toy.TRAIN, steps=5)), student=toy.TEACHER)
    launch(replace(own, teachers=()))
    config = toy.student_run(folder, "mixed")
    data = replace(config.data, path=str(folder / "sums_both"), validation_path=str(folder / "held_out_both"))
    checkpoint = str(folder / "own_run")
    same = TeacherConfig(name="own", model=toy.TEACHER, checkpoint=checkpoint, loss=LossConfig(mode="same_tokenizer"))
    of_bytes = replace(config.teachers[0], name="bytes", cache="stored")
    config = replace(config, data=data, teachers=(of_bytes, same))
    assert [result.missing for result in fill(config, FP32, teachers=("bytes",))] == [0, 0]
    mixed = replace(config, run_dir=str(folder / "mixed_cached"), teachers=(replace(of_bytes, kind="cached"), same))
    assert_same_curve(curve(mixed), curve(config))


def test_an_array_of_jobs_fills_what_one_job_does(folder: Path) -> None:
    config = cached(folder, "any", "array")
    first, second = (fill(config, FP32, part=(i, 2)) for i in (0, 1))
    assert first[0].missing > 0
    assert first[0].written + second[0].written == second[0].shards > 3
    assert [result.missing for result in second] == [0, 0]
    for data in ("pair", "held_out"):
        whole, parts = (cache_directory(folder / data, name) for name in ("fp32", "array"))
        for number in range(CacheManifest.load(whole).num_shards):
            assert ShardFile(whole, number).path.read_bytes() == ShardFile(parts, number).path.read_bytes()


def test_two_ranks_of_a_cut_teacher_store_the_same(folder: Path) -> None:
    config = cached(folder, "any", "cut", parallel=ParallelConfig(tensor_model_parallel_size=2, data_parallel_size=2))
    fill(config, FP32)
    whole, cut = (CacheReader(cache_directory(folder / "pair", name)) for name in ("fp32", "cut"))
    tokens = torch.arange(whole.manifest.tokens)
    torch.testing.assert_close(cut.hidden(tokens), whole.hidden(tokens), rtol=1e-5, atol=1e-5)
    assert torch.equal(cut.head().weight, whole.head().weight)


def test_what_was_written_is_not_written_again(folder: Path) -> None:
    config = cached(folder, "any", "again")
    fill(config, FP32)
    directory = cache_directory(folder / "pair", "again")
    before = ShardFile(directory, 1).path.read_bytes()
    ShardFile(directory, 1).record.unlink()
    ShardFile(directory, 2).path.write_bytes(b"half")
    again = fill(config, FP32)
    assert (again[0].written, again[0].missing, again[1].written) == (2, 0, 0)
    assert ShardFile(directory, 1).path.read_bytes() == before
    with pytest.raises(ConfigError, match="another storage"):
        fill(config, BF16)


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on(folder: Path) -> None:
    config = cached(folder, "any", "killed")
    save_run(config, folder / "killed.yaml")
    directory = cache_directory(folder / "pair", "killed")
    command = ("teacher", "cache", folder / "killed.yaml", "--store", "fp32", "--shard-tokens", "20", "--json")
    process = Forked(nemo_xtoken, *command, log=folder / "killed")
    deadline = time.monotonic() + 120
    while not ShardFile(directory, 5).is_done and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="is not complete"):
        CacheReader(directory)
    process = Forked(nemo_xtoken, *command, log=folder / "goes_on")
    assert process.wait() == 0, process.texts()
    training, _ = json.loads(process.texts()[0])["caches"]
    assert (training["missing"], 0 < training["written"] < training["shards"]) == (0, True)
    reader, whole = CacheReader(directory), CacheReader(cache_directory(folder / "pair", "fp32"))
    tokens = torch.arange(whole.manifest.tokens)
    torch.testing.assert_close(reader.hidden(tokens), whole.hidden(tokens), rtol=1e-5, atol=1e-5)


def refused(config: RunConfig, error: type[Exception], told: str) -> None:
    shutil.rmtree(config.run_dir, ignore_errors=True)
    with pytest.raises(error, match=told):
        curve(config)


def test_what_does_not_belong_together_is_refused(folder: Path) -> None:
    config = cached(folder, "refused", "fp32")
    (teacher,) = config.teachers
    refused(replace(config, teachers=(replace(teacher, cache="none"),)), DataError, "run nemo-xtoken teacher cache")
    shorter = replace(config.data, teacher_sequence_length=6)
    refused(replace(config, data=shorter), DataError, "was written for other tokens")
    other = replace(teacher, checkpoint=str(folder / "teacher_run_2"))
    teacher_run = toy.teacher_run(folder)
    launch(replace(teacher_run, run_dir=other.checkpoint, train=replace(teacher_run.train, steps=3)))
    refused(replace(config, teachers=(other,)), CheckpointError, "was written from another checkpoint")
    wider = replace(teacher, checkpoint="none", model=replace(toy.TEACHER, hidden_size=32))
    refused(replace(config, teachers=(wider,)), ConfigError, "has hidden states of 16 numbers")


def test_a_teacher_in_fp8_has_a_cache_of_its_own(folder: Path) -> None:
    fp8 = Fp8Config(recipe="mxfp8", backend="emulate")
    config = cached(folder, "from_fp8_teacher", "fp8_teacher")
    (teacher,) = config.teachers
    rounded = replace(config, teachers=(replace(teacher, fp8=fp8),))
    fill(rounded, FP32)
    colocated = toy.student_run(folder, "fp8_teacher_colocated")
    colocated = replace(colocated, teachers=(replace(colocated.teachers[0], fp8=fp8),))
    lines = curve(rounded)
    assert_same_curve(lines, curve(colocated))
    assert lines[0]["kd"] != pytest.approx(toy.metrics(toy.student_run(folder, "colocated"))[0]["kd"], rel=1e-5)
    refused(replace(config, run_dir=str(folder / "refused")), ConfigError, "the config has null")
    plain = cached(folder, "refused", "fp32")
    refused(replace(plain, teachers=(replace(plain.teachers[0], fp8=fp8),)), ConfigError, "teacher's fp8 null")
    with pytest.raises(ConfigError, match="holds a cache with another fp8"):
        fill(config, FP32)
    odd = replace(rounded.data, teacher_sequence_length=44)
    with pytest.raises(ConfigError, match=r"44 gives each rank .* no multiple of 32"):
        fill(replace(rounded, data=odd), FP32)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (LossConfig(teacher_top_k=None), "a mean of the logarithms"),
        (LossConfig(merge="first", teacher_top_k=64), "teacher_top_k=null"),
        (LossConfig(merge="first", teacher_top_k=None, temperature=2.0), "temperature 2.0"),
        (LossConfig(mode="h_kl"), "unbiased in p_kl only"),
        (LossConfig(merge="first", chain=True), "loss.chain would need ratios"),
        (LossConfig(direction="reverse"), "direction=forward"),
    ],
)
def test_losses_that_draws_would_bias_are_refused(loss: LossConfig, told: str) -> None:
    from nemo_xtoken.integrations.megatron.cached_teacher import check_loss

    with pytest.raises(ConfigError, match=told):
        check_loss("teacher", loss, "sampled")
    check_loss("teacher", loss, "bf16")


def test_a_layout_that_cannot_store_is_refused(folder: Path) -> None:
    config = cached(folder, "any", "cp2", parallel=LAYOUTS["cp2"])
    with pytest.raises(ConfigError, match=r"the sequences of teacher, .* 46 must be divisible by 4"):
        fill(replace(config, data=replace(config.data, teacher_sequence_length=46)), FP32)
    with pytest.raises(ConfigError, match="num_layers 1 is not divisible by the 2"):
        fill(cached(folder, "any", "pp2", parallel=LAYOUTS["pp2"]), FP32)
    with pytest.raises(ConfigError, match="the run has no teacher other: it has teacher"):
        fill(cached(folder, "any", "other"), FP32, teachers=("other",))
