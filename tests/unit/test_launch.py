"""Launching without SLURM: what is refused, what the scripts say, what a node is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.cli.app import run as run_cli
from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import load, load_run
from nemo_xtoken.errors import ConfigError, DataError, UnavailableError
from nemo_xtoken.launch import ClusterConfig, ComponentConfig, ContainerConfig, JobConfig, LaunchPlan, records, slurm
from nemo_xtoken.launch.nemo_run import slurm_executor
from nemo_xtoken.launch.node_check import faults
from nemo_xtoken.launch.render import render
from nemo_xtoken.launch.submission import launch
from tests.conftest import CHECKOUT

CONFIGS = CHECKOUT / "launcher_configs"
QUICKSTART = CHECKOUT / "examples" / "quickstart.yaml"
CLUSTERS = sorted(path.stem for path in (CONFIGS / "clusters").glob("*.yaml"))
JOBS = sorted(path.stem for path in (CONFIGS / "jobs").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "launch_scripts"


def run_of(cluster: ClusterConfig, job: JobConfig) -> RunConfig:
    """A run whose ranks are those of the job."""
    ranks = cluster.ranks * job.nodes
    device = "cuda" if cluster.gpus_per_node else "cpu"
    batch = max(ranks // 2, 1) * 8
    sizes = {"tensor_model_parallel_size": min(ranks, 2), "data_parallel_size": max(ranks // 2, 1)}
    layout = [f"parallel.{name}={size}" for name, size in sizes.items()]
    if job.components:  # the teacher in the layout of the student
        teacher = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        layout += ["teachers.0.kind=remote", f"teachers.0.parallel={{{teacher}}}"]
    return load_run(QUICKSTART, [f"device={device}", f"train.global_batch_size={batch}", *layout])


def plan_of(cluster: str, job: str, **changes: Any) -> LaunchPlan:
    cluster_config = load(ClusterConfig, CONFIGS / "clusters" / f"{cluster}.yaml")
    job_config = load(JobConfig, CONFIGS / "jobs" / f"{job}.yaml")
    run, directory = run_of(cluster_config, job_config), Path("/shared/my project")
    plan = LaunchPlan(run=run, cluster=cluster_config, job=job_config, directory=directory)
    return replace(plan, **changes)


PAIRS = [(cluster, job) for cluster in CLUSTERS for job in JOBS if (cluster, job) != ("modules", "heterogeneous")]
"""torchrun starts no heterogeneous jobs."""


@pytest.mark.parametrize(("cluster", "job"), PAIRS)
def test_every_script_is_as_it_was_read_last(cluster: str, job: str) -> None:
    """`UPDATE_GOLDEN=1` writes them anew; read the difference before it is committed."""
    golden = GOLDEN / f"{cluster}-{job}.sbatch"
    script = render(plan_of(cluster, job))
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(script, encoding="utf-8")
    assert script == golden.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    scripts = sorted(GOLDEN.glob("*.sbatch"))
    assert [path.stem for path in scripts] == sorted(f"{cluster}-{job}" for cluster, job in PAIRS)
    # SC1091: the environment that a prologue sources is on the cluster.
    finished = subprocess.run(["shellcheck", "--exclude=SC1091", *scripts], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "")


NASTY = 'a\'b $(touch pwned) "c" `d` ; e'


def test_what_a_user_says_is_data_to_the_shell(tmp_path: Path) -> None:
    """The script runs here, with srun and scontrol replaced by programs that print their arguments."""
    plan = plan_of("cpu", "evaluate")
    cluster = replace(
        plan.cluster, environment={"NCCL_X": NASTY}, comment=NASTY, srun_arguments=(f"--comment={NASTY}",)
    )
    plan = replace(plan, cluster=cluster, job=replace(plan.job, command=("evaluate", NASTY, "--data", "{run_dir}")))
    output = run_with_fake_slurm(render(plan), tmp_path)
    for expected in (f"<--comment={NASTY}>", f"<{NASTY}>", f"<{plan.run_dir}>", f"NCCL_X={NASTY}"):
        assert expected in output
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(ConfigError, match="--comment: expected one line"):
        render(replace(plan, cluster=replace(cluster, comment="a\nsrun rm")))


def test_each_component_asks_for_its_own_nodes_and_one_step_runs_on_all() -> None:
    plan = plan_of("generic", "heterogeneous")
    teacher = ComponentConfig(nodes=2, partition="big", gpus_per_node=4, memory="90G")
    script = render(replace(plan, job=replace(plan.job, components=(teacher,))))
    student, _, others = script.partition("#SBATCH hetjob\n")
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=8\n#SBATCH --exclusive\n#SBATCH --gpus-per-node=8\n" in student
    assert "#SBATCH --partition=big\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\n#SBATCH --mem=90G\n" in others
    assert "#SBATCH --gpus-per-node=4\n" in others
    assert "--het-group=1 --ntasks-per-node=1 --ntasks=2 --kill-on-bad-exit=0" in others
    assert 'srun "${srun_options[@]}" --het-group=0,1 --kill-on-bad-exit=0 --wait=30' in others
    four = replace(plan.cluster, ranks_per_node=4)
    with pytest.raises(ConfigError, match=r"student's 8 ranks belong on the job's own nodes, which have 4, and"):
        replace(plan, cluster=four, job=replace(plan.job, components=(ComponentConfig(ranks_per_node=12),)))
    with pytest.raises(ConfigError, match="SLURM has no arrays of heterogeneous jobs"):
        replace(plan.job, array=2)


def run_with_fake_slurm(script: str, folder: Path) -> str:
    """What a script says where srun and scontrol print their arguments."""
    for name in ("srun", "scontrol"):
        (folder / name).write_text('#!/bin/sh\nfor word; do printf "<%s>\\n" "$word"; done\nenv | grep ^NCCL_\n')
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "node1",
        "HF_TOKEN": "very secret",
    }
    finished = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert finished.stderr == ""
    return finished.stdout


def test_a_container_is_asked_of_pyxis_word_by_word(tmp_path: Path) -> None:
    plan = plan_of("pyxis", "evaluate")
    container = ContainerConfig(
        image="nvcr.io#nvidia/nemo:25.09", mounts=("/lustre:/lustre", "/a b/$x:/a b/$x:ro"), mount_home=True
    )
    output = run_with_fake_slurm(render(replace(plan, cluster=replace(plan.cluster, container=container))), tmp_path)
    assert output.split("\n")[1:6] == [
        "<--mpi=pmix>",
        "<--container-image=nvcr.io#nvidia/nemo:25.09>",
        "<--container-mounts=/lustre:/lustre,/a b/$x:/a b/$x:ro>",
        "<--container-workdir=/shared/my project>",
        "<--container-mount-home>",
    ]
    assert "very secret" not in output
    assert "<--no-container-mount-home>" in run_with_fake_slurm(render(plan), tmp_path)
    with pytest.raises(ConfigError, match=r"a comma would part it in two"):
        ContainerConfig(image="x", mounts=("/a,b:/a,b",))


def test_an_array_says_its_place_to_each_job() -> None:
    script = render(plan_of("cpu", "prepare_array"))
    assert '--part "${SLURM_ARRAY_TASK_ID}"/"${SLURM_ARRAY_TASK_COUNT}"' in script
    assert '--out data/part-"${SLURM_ARRAY_TASK_ID}"' in script
    assert "#SBATCH --array=0-7\n" in script


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "ranks": ({"job": {"nodes": 3}}, r"3 nodes x 8 ranks are 24, but .* = 8 ranks; set parallel.data_parallel_size=12"),
    "device": ({"run": {"device": "cpu"}}, r"the cluster has 8 GPUs per node but the run has device: cpu"),
    "array": ({"job": {"array": 2}}, r"a training can't be an array"),
    "torchrun": (
        {"job": {"components": (ComponentConfig(),)}, "cluster": {"launcher": "torchrun"}},
        r"a heterogeneous job needs launcher: srun",
    ),
    "placeholder": ({"job": {"command": ("train", "{rum}")}}, r"'\{rum\}' has an unknown placeholder; valid are run,"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_run_is_refused_before_anything_is_submitted(case: str) -> None:
    changes, message = REFUSED[case]
    plan = plan_of("generic", "train")
    changed = {name: replace(getattr(plan, name), **fields) for name, fields in changes.items()}
    with pytest.raises(ConfigError, match=message):
        replace(plan, **changed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus_per_node": 0}, "ranks_per_node must be set where gpus_per_node is 0"),
        ({"environment": {"HF_TOKEN": "x"}}, r"environment.HF_TOKEN looks like a secret"),
        ({"environment": {"A B": "x"}}, r"'A B' is not the name of an environment variable"),
        ({"signal_lead_seconds": 0}, "signal_lead_seconds must be positive"),
    ],
)
def test_bad_cluster_files_get_one_clear_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusterConfig(**{"gpus_per_node": 8, **fields})


def test_a_typo_in_a_cluster_file_names_the_nearest_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cluster.yaml").write_text("gpus_per_node: 8\nparttition: batch\n", encoding="utf-8")
    files = ["--cluster", str(tmp_path / "cluster.yaml"), "--job", str(CONFIGS / "jobs" / "train.yaml")]
    assert run_cli(["launch", str(QUICKSTART), *files]) == 2
    assert "unknown key parttition; did you mean partition?" in capsys.readouterr().err.replace("\n", " ")


def test_files_must_exist_and_be_seen_in_the_container(tmp_path: Path) -> None:
    plan = replace(plan_of("generic", "train"), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"data: .*student_train does not exist"):
        plan.check_files()
    for name in ("data/student_train", "teacher", "projection.safetensors"):
        (tmp_path / "quickstart" / name).mkdir(parents=True)
    plan.check_files()
    with pytest.raises(ConfigError, match=r"student_checkpoint: .*pretrained does not exist"):
        replace(plan, run=replace(plan.run, student_checkpoint="pretrained")).check_files()
    container = ContainerConfig(image="x", mounts=("/usr:/usr",))
    with pytest.raises(ConfigError, match=r"run_dir: .* lies in none of the container's mounts \(/usr\)"):
        replace(plan, cluster=replace(plan.cluster, container=container)).check_files()
    mounted = replace(container, mounts=(f"{tmp_path}:{tmp_path}",))
    replace(plan, cluster=replace(plan.cluster, container=mounted)).check_files()
    with pytest.raises(ConfigError, match=r"expected /SOURCE:/TARGET, got 'data'"):
        ContainerConfig(image="x", mounts=("data",))


def test_secrets_come_from_the_shell_and_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(plan_of("pyxis", "train"), directory=tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="HF_TOKEN must be set in this shell"):
        launch(plan)
    monkeypatch.setenv("HF_TOKEN", "very secret")
    script = render(plan)
    assert "very secret" not in script
    assert ': "${HF_TOKEN:?must be set where the job is submitted}"' in script


def test_without_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="sbatch is not on PATH"):
        slurm.check_accepted(tmp_path / "x.sbatch")


def test_launches_are_recorded_and_read_back(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was submitted for this run"):
        records.submissions(tmp_path)
    submission = records.Submission("17", "run", "run.sbatch", "2026-01-01T00:00:00+00:00")
    records.record(tmp_path, submission)
    records.record(tmp_path, replace(submission, job_id="18"))
    assert [job.job_id for job in records.submissions(tmp_path)] == ["17", "18"]
    (tmp_path / records.FILE).write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError, match="is not a record of a job"):
        records.submissions(tmp_path)


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<END\n{output}\nEND\nexit {code}\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_node_says_what_is_wrong_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(faults(0, tmp_path, 0.0)) == []
    (disk,) = faults(0, tmp_path, 1e9)
    assert disk.endswith(f"GB are free in {tmp_path}, expected 1e+09")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert list(faults(2, tmp_path, 0.0)) == ["nvidia-smi is missing"]
    monkeypatch.undo()
    fake_nvidia_smi(tmp_path, monkeypatch, "0\n[N/A]")
    assert list(faults(2, tmp_path, 0.0)) == []
    assert list(faults(3, tmp_path, 0.0)) == ["2 of 3 GPUs answer"]
    fake_nvidia_smi(tmp_path, monkeypatch, "0\n12")
    assert list(faults(2, tmp_path, 0.0)) == ["GPU 1 has 12 uncorrected memory errors"]
    fake_nvidia_smi(tmp_path, monkeypatch, "No devices were found", 6)
    assert list(faults(2, tmp_path, 0.0)) == ["nvidia-smi failed: No devices were found"]
    below = tmp_path / "nvidia-smi" / "below"
    assert list(faults(0, below, 0.0)) == [f"{below} can't be used: Not a directory"]


def test_launch_prints_the_script_and_submits_nothing_on_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--cluster", str(CONFIGS / "clusters" / "cpu.yaml"), "--job", str(CONFIGS / "jobs" / "train.yaml")]
    changes = ["job.nodes=2", "cluster.account=a b", "optimizer.lr=1e-2"]
    precision = ["--precision", str(CONFIGS / "precision" / "bf16.yaml")]
    assert run_cli(["launch", str(QUICKSTART), *files, *precision, *changes, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --account='a b'\n#SBATCH --nodes=2\n" in script
    assert run_cli(["launch", str(QUICKSTART), *files, "--dry-run"]) == 2
    assert "1 nodes x 1 ranks are 1, but the run's layout is" in capsys.readouterr().err.replace("\n", " ")


def test_precision_files_are_keys_of_a_run() -> None:
    for path in (CONFIGS / "precision").glob("*.yaml"):
        run = load_run(QUICKSTART, (), [path])
        assert run.train.bf16 == (path.stem != "fp32")
        assert path.stem == (f"fp8_{run.fp8.recipe}" if run.fp8 else path.stem.removeprefix("fp8_"))
        assert run.fp8 is None or run.fp8.backend == "te"


def test_status_needs_a_launch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["launch", "status", str(tmp_path)]) == 1
    assert "nothing was submitted for this run" in capsys.readouterr().err.replace("\n", " ")
    assert run_cli(["launch", "status", str(tmp_path / "missing")]) == 2


def test_states_are_read_from_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = tmp_path / "squeue"
    queue.write_text("#!/bin/sh\necho '7|PENDING|Resources'\necho '8|RUNNING|None'\n", encoding="utf-8")
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    states = slurm.states(["7", "8", "9"])
    assert states["7"] == "PENDING (Resources)"
    assert states["8"] == "RUNNING"
    records.record(tmp_path, records.Submission("8", "run", "run.sbatch", "2026-01-01"))
    assert json.loads((tmp_path / records.FILE).read_text())["job_id"] == "8"


def test_without_nemo_run_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nemo_run", None)
    with pytest.raises(UnavailableError, match=r"nemo-run is not installed; pip install nemo-run"):
        slurm_executor(CONFIGS / "clusters" / "pyxis.yaml", CONFIGS / "jobs" / "train.yaml", tmp_path)
