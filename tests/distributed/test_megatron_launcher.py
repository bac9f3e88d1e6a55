"""Local ranks, ranks of torchrun and srun, and the device layer under them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nemo_xtoken.errors import ConfigError, UnavailableError, XTokenError
from nemo_xtoken.integrations.megatron import cpu_device, launch, megatron_facts
from nemo_xtoken.integrations.megatron.launcher import rank_of_this_process
from nemo_xtoken.integrations.megatron.local_ranks import Task, run_locally
from nemo_xtoken.integrations.megatron.quiet import NOTES, keep_quiet
from tests.distributed import toy

CHECKOUT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(120)


def add_ranks(base: int, init_method: str) -> tuple[int, str]:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    total = torch.tensor(base + rank)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return int(total), os.environ["LOCAL_RANK"]


def fail_on_rank_1(kind: str, init_method: str) -> None:
    if os.environ["RANK"] == "1":
        raise ConfigError("expected this, got that; do something") if kind == "known" else KeyError("a bug\nof ours")
    time.sleep(60)


def test_local_ranks_form_one_job_and_rank_0_answers() -> None:
    assert run_locally(Task(__name__, "add_ranks", (10,), "cpu"), 2) == (21, "0")
    assert "RANK" not in os.environ


def test_a_failing_rank_ends_the_others_with_its_error(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"^expected this, got that; do something$"):
        run_locally(Task(__name__, "fail_on_rank_1", ("known",), "cpu"), 2)
    assert capfd.readouterr().err == ""
    with pytest.raises(XTokenError, match=r"^rank 1 failed: KeyError: 'a bug"):
        run_locally(Task(__name__, "fail_on_rank_1", ("unknown",), "cpu"), 2)
    assert capfd.readouterr().err.count("Traceback") == 1
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rank_of_torchrun_trains_as_that_rank(toy_folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*torchrun, "-m", "tests.distributed.train_toy", str(toy_folder), "torchrun", "6", "2"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, capture_output=True, timeout=220)
    launch(toy.student_run(toy_folder, "alone"))
    by_torchrun, alone = (toy.metrics(toy.student_run(toy_folder, name)) for name in ("torchrun", "alone"))
    assert len(by_torchrun) == len(alone) == 6
    for line, same in zip(by_torchrun, alone, strict=True):
        assert line["loss"] == pytest.approx(same["loss"], rel=1e-5)


def test_sruns_variables_become_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert rank_of_this_process() is None
    for name, value in (("STEP_NUM_TASKS", "4"), ("PROCID", "3"), ("LOCALID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT must be set"):
        rank_of_this_process()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "to be undone")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert rank_of_this_process() == 3
    assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("4", "1")


def test_the_device_layer_answers_for_cuda_and_is_installed_once() -> None:
    factory = torch.zeros
    cpu_device.install()
    assert torch.zeros is factory
    assert torch.zeros([], device="cuda").device.type == "cpu"
    assert torch.empty(2, device=torch.device("cuda", 0), pin_memory=True).device.type == "cpu"
    assert torch.cuda.current_device() == torch.device("cpu")
    parameter = torch.ones(2)
    assert parameter.cuda() is parameter
    assert parameter.type() == "torch.cuda.FloatTensor"
    assert parameter.type(torch.float64).dtype == torch.float64


def test_a_device_context_still_redirects_torchs_factories() -> None:
    """In a process of its own, where nothing has used such a context before the layer."""
    command = "from nemo_xtoken.integrations.megatron import cpu_device; import torch; cpu_device.install()\n"
    command += "with torch.device('meta'): print(torch.arange(3).device, torch.zeros(2).device)"
    answer = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert answer.stdout == "meta meta\n"


def test_the_device_layer_has_to_come_before_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    import megatron.core  # noqa: F401

    monkeypatch.setattr(torch.cuda, cpu_device.MARK, False)
    with pytest.raises(UnavailableError, match=r"must be chosen before megatron.core is imported"):
        cpu_device.install()


def test_the_package_imports_without_megatron_and_without_the_device_layer() -> None:
    check = (
        "import sys, torch, nemo_xtoken.integrations.megatron as m; m.megatron_facts();"
        "assert 'megatron' not in sys.modules and torch.zeros(1).type() == 'torch.FloatTensor'"
    )
    subprocess.run([sys.executable, "-c", check], cwd=CHECKOUT, check=True, timeout=60)


def test_notes_to_megatrons_developers_are_dropped_and_warnings_kept(caplog: pytest.LogCaptureFixture) -> None:
    keep_quiet()
    for name, words in NOTES.items():
        logging.getLogger(name).warning(f"X {words}, see %s", "the guide")
        logging.getLogger(name).warning("another warning")
    logging.getLogger("megatron.core.optimizer").warning("GPTModel IS DEPRECATED, says another logger")
    kept = [(record.name, record.msg) for record in caplog.records]
    expected = [(name, "another warning") for name in NOTES]
    assert kept == [*expected, ("megatron.core.optimizer", "GPTModel IS DEPRECATED, says another logger")]


def test_facts_name_what_megatron_will_use() -> None:
    facts = megatron_facts()
    assert facts["megatron-core"][0].isdigit()
    assert set(facts) >= {"optimizer", "norm", "layers", "communication", "Transformer Engine", "apex"}
    assert all(facts.values())
