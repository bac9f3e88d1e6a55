"""nemo-run's executor from the files of clusters: its fields, and the script that it writes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from nemo_run.core.execution.slurm import SlurmBatchRequest, SlurmExecutor

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.launch.nemo_run import slurm_executor
from tests.conftest import CHECKOUT

CONFIGS = CHECKOUT / "launcher_configs"
CLUSTERS = sorted(path.stem for path in (CONFIGS / "clusters").glob("*.yaml"))
SECRET = "very secret"


def executor_of(cluster: str | Path, folder: Path, *overrides: str) -> SlurmExecutor:
    path = cluster if isinstance(cluster, Path) else CONFIGS / "clusters" / f"{cluster}.yaml"
    return slurm_executor(path, CONFIGS / "jobs" / "train.yaml", folder, ["cluster.account=lab", *overrides])


def script_of(executor: SlurmExecutor, folder: Path) -> str:
    executor.assign("experiment", str(folder), "task", "task")
    launcher = executor.get_launcher()
    return SlurmBatchRequest(
        launch_cmd=["sbatch", "--parsable"],
        jobs=["task"],
        command_groups=[["nemo-xtoken", "train", "run.yaml"]],
        executor=executor,
        max_retries=executor.retries,
        extra_env={},
        launcher=launcher,
    ).materialize()


def test_a_cluster_with_containers(tmp_path: Path) -> None:
    executor = executor_of("pyxis", tmp_path, "job.nodes=4")
    assert (executor.nodes, executor.ntasks_per_node, executor.gpus_per_node) == (4, 8, 8)
    assert (executor.account, executor.partition, executor.time) == ("lab", "batch", "04:00:00")
    assert (executor.retries, executor.signal, executor.exclusive) == (20, "USR1@300", True)
    assert executor.container_image == "nvcr.io#nvidia/nemo:25.09"
    assert executor.container_mounts == ["/lustre:/lustre"]
    assert executor.env_vars["NCCL_IB_TIMEOUT"] == "22"
    script = script_of(executor, tmp_path)
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in script
    assert "--container-image nvcr.io#nvidia/nemo:25.09" in script
    assert "--kill-on-bad-exit=0 --wait=30 --mpi=pmix --no-container-mount-home nemo-xtoken train run.yaml" in script


def test_a_cluster_without_and_with_torchrun(tmp_path: Path) -> None:
    executor = executor_of("modules", tmp_path)
    script = script_of(executor, tmp_path)
    assert (executor.ntasks_per_node, executor.torchrun_nproc_per_node) == (1, 4)
    assert (executor.gres, executor.gpus_per_node, executor.cpus_per_task) == ("gpu:4", None, 64)
    assert "module load cuda/12.8\n" in script
    assert "--container" not in script


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_script_is_shell(cluster: str, tmp_path: Path) -> None:
    script = script_of(executor_of(cluster, tmp_path), tmp_path)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_values_are_data_to_the_shell_and_secrets_stay_out_of_the_log(tmp_path: Path) -> None:
    """The script runs here, with srun replaced by a program that prints its environment. nemo-run traces each line."""
    (tmp_path / "cluster.yaml").write_text(
        "gpus_per_node: 0\nranks_per_node: 1\nsecrets: [HF_TOKEN]\n"
        "environment:\n  NCCL_X: a'b $(touch pwned) `d` ; e\n  no_proxy: a b\n",
        encoding="utf-8",
    )
    (tmp_path / "srun").write_text("#!/bin/sh\nenv | grep -E '^(NCCL_X|no_proxy)='\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    script = script_of(executor_of(tmp_path / "cluster.yaml", tmp_path), tmp_path)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [shutil.which("bash") or "bash", "-c", script]
        return subprocess.run(
            command, env={**environment, **more}, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    finished = run(HF_TOKEN=SECRET)
    assert {"NCCL_X=a'b $(touch pwned) `d` ; e", "no_proxy=a b"} <= set(finished.stdout.splitlines())
    assert not (tmp_path / "pwned").exists()
    assert SECRET not in finished.stdout + finished.stderr
    assert "+ [ -n set ]" in finished.stderr.replace("'", "")
    without = run()
    assert without.returncode == 2
    assert "HF_TOKEN must be set where the job is submitted" in without.stdout


def test_what_nemo_run_has_no_word_for_is_refused(tmp_path: Path) -> None:
    for override, message in (
        ("job.chain=2", "nemo-run has no chains"),
        ("job.components=[{}]", "an executor for each component"),
        ("job.command=[evaluate]", "expected the file of a training, got one of `evaluate`"),
        ("cluster.account=null", "nemo-run needs an account"),
    ):
        with pytest.raises(ConfigError, match=message):
            executor_of("generic", tmp_path, override)
