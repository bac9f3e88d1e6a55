from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemo_xtoken.cli.app import app
from nemo_xtoken.doctor import Gpu, Machine, Status, examine, features, machine, statuses
from nemo_xtoken.doctor.machine import MISSING, OTHER_APEX, PACKAGES

BARE = Machine(
    versions={"python": "3.11.7", **dict.fromkeys(PACKAGES, MISSING)},
    cpu_cores=2,
    memory=1 << 30,
    cuda=None,
    gpus=(),
    slurm={"sbatch": MISSING, "sinfo": MISSING},
    megatron={},
)
HOPPER = Gpu("H100", (9, 0), 80 << 30)


def with_packages(found: Machine, *packages: str) -> Machine:
    return dataclasses.replace(found, versions={**found.versions, **dict.fromkeys(packages, "1.0")})


def by_name(found: Machine) -> dict[str, Status]:
    return {status.feature: status for status in statuses(found)}


def test_a_bare_machine_lacks_what_each_feature_needs() -> None:
    statuses = by_name(BARE)
    assert statuses["Training on CPU"].detail == "missing: megatron-core"
    assert statuses["Training on GPU"].detail == "missing: megatron-core; a CUDA device"
    assert "NVIDIA's apex" in statuses["Fused optimizer and norms"].detail


def test_megatron_core_alone_trains_on_cpu_and_not_on_gpu() -> None:
    statuses = by_name(with_packages(BARE, "megatron-core"))
    assert statuses["Training on CPU"].state == "ready"
    assert statuses["Training on GPU"].detail == "missing: a CUDA device"


def test_a_gpu_and_apex_bring_gpu_training_and_fused_kernels() -> None:
    found = dataclasses.replace(with_packages(BARE, "megatron-core", "apex"), gpus=(HOPPER,))
    statuses = by_name(found)
    assert statuses["Training on GPU"].state == "ready"
    assert statuses["Fused optimizer and norms"].state == "ready"


def test_nemo_needs_the_megatron_core_that_its_checkpoints_work_with() -> None:
    found = with_packages(BARE, "nemo-toolkit", "nemo-run", "megatron-core")
    assert by_name(found)["NeMo 2.x on CPU"].detail == (
        "missing: megatron-core 0.15.x, with which NeMo's checkpoints work (found: 1.0)"
    )
    found = dataclasses.replace(found, versions={**found.versions, "megatron-core": "0.15.3"})
    assert by_name(found)["NeMo 2.x on CPU"].state == "ready"
    assert by_name(found)["NeMo 2.x on GPU"].detail == "missing: a CUDA device; transformer-engine"
    assert "nemo-toolkit 2.x, extra 'nemo'" in by_name(BARE)["NeMo 2.x on CPU"].detail


def test_pypis_apex_does_not_count_as_apex() -> None:
    found = dataclasses.replace(with_packages(BARE, "megatron-core"), gpus=(HOPPER,))
    found = dataclasses.replace(found, versions={**found.versions, "apex": OTHER_APEX})
    assert by_name(found)["Fused optimizer and norms"].state == "missing"


def test_pypis_apex_is_told_from_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed_version", lambda package: "0.9.10")
    monkeypatch.setattr(machine, "has_apex", lambda: False)
    assert examine().versions["apex"] == OTHER_APEX
    monkeypatch.setattr(machine, "has_apex", lambda: True)
    assert examine().versions["apex"] == "0.9.10"


def test_a_feature_without_a_room_is_not_in_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FEATURES", {"Wishes": ("attic", ()), "Report": ("report", ())})
    assert [(status.feature, status.state) for status in statuses(BARE)] == [
        ("Wishes", "not in this version"),
        ("Report", "ready"),
    ]


def test_a_capability_that_is_too_low_is_missing() -> None:
    found = dataclasses.replace(BARE, gpus=(HOPPER,))
    assert features.gpu(9, 0)(found) is None
    assert features.gpu(10, 0)(found) == "a CUDA device of compute capability 10.0 or higher"
    assert features.gpu()(BARE) == "a CUDA device"


def test_a_slurm_command_is_asked_for_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.command_version("sbatch") == MISSING
    command = tmp_path / "sbatch"
    command.write_text("#!/bin/sh\necho slurm-wlm 22.05.8\n")
    command.chmod(0o755)
    assert machine.command_version("sbatch") == "slurm-wlm 22.05.8"
    command.write_text("#!/bin/sh\nexit 3\n")
    assert machine.command_version("sbatch") == "on PATH, but fails with exit code 3"


@pytest.mark.parametrize(
    ("sbatch", "detail"),
    [
        (MISSING, "missing: sbatch on PATH"),
        (
            "on PATH, but fails with exit code 1",
            "missing: a SLURM that answers (sbatch: on PATH, but fails with exit code 1)",
        ),
        ("slurm-wlm 22.05.8", "can run here"),
    ],
)
def test_a_launch_needs_a_slurm_that_answers(sbatch: str, detail: str) -> None:
    found = dataclasses.replace(BARE, slurm={"sbatch": sbatch, "sinfo": sbatch})
    assert by_name(found)["SLURM launch"].detail == detail


def test_doctor_tells_the_optimizer_and_norm_that_megatron_core_really_takes() -> None:
    program = (
        "import megatron.core.optimizer as o, megatron.core.models.gpt.gpt_layer_specs as g\n"
        "print(o.Adam.__module__.split('.')[0], g.LNImpl.__name__)"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    optimizer, norm = result.stdout.split()[-2:]
    expected = {"torch": "torch AdamW", "apex": "apex FusedAdam", "transformer_engine": "Transformer Engine FusedAdam"}
    assert examine().megatron["optimizer"] == expected[optimizer]
    if norm == "WrappedTorchNorm":
        assert examine().megatron["norm"].startswith(("torch", "Transformer Engine"))


def test_doctor_prints_tables_and_ends_well() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    for word in ("Software", "Devices", "SLURM", "megatron-core takes", "Features", "Training on CPU"):
        assert word in result.stdout


def test_doctor_json_is_one_object_and_nothing_else() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert found["versions"]["python"].startswith("3.")
    assert {"feature", "state", "detail"} == set(found["features"][0])
