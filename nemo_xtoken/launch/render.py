"""From a plan to the text of its sbatch script. Every string of a user's is quoted; only `prologue` is code."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import jinja2

from nemo_xtoken.errors import require
from nemo_xtoken.launch.cluster import ClusterConfig
from nemo_xtoken.launch.plan import LaunchPlan, Nodes

Option = tuple[str, str | None]


def render(plan: LaunchPlan) -> str:
    """The sbatch script. Raises ConfigError for a value that would break out of its line."""
    template = _environment().get_template("train.sbatch.j2" if plan.job.trains else "command.sbatch.j2")
    return template.render(
        name=plan.name,
        options=[(name, _one_line(name, value)) for name, value in sbatch_options(plan)],
        run_dir=str(plan.run_dir),
        folder=str(plan.folder),
        logs=str(plan.folder / "logs"),
        device=plan.run.device,
        cluster=plan.cluster,
        components=plan.components,
        every_component=_every_component(len(plan.components)),
        nodes=_node_lists(len(plan.components)),
        job=plan.job,
        executable=plan.cluster.executable,
        srun_options=[_one_line("srun_arguments", word) for word in srun_options(plan)],
        words=" ".join(_command(plan)),
    )


def sbatch_options(plan: LaunchPlan) -> Iterator[Option]:
    """The script's #SBATCH lines: name and value, None for a flag."""
    cluster, job = plan.cluster, plan.job
    yield "--job-name", plan.name
    first, *others = plan.components
    yield from _nodes_options(plan, first)
    yield "--chdir", str(plan.directory)
    yield "--output", str(plan.folder / "logs" / ("%x-%A_%a.log" if job.array else "%x-%j.log"))
    yield "--open-mode", "append"
    if job.array:
        yield "--array", f"0-{job.array - 1}"
    if job.trains:
        yield "--signal", f"B:USR1@{cluster.signal_lead_seconds}"
        yield "--requeue", None
    yield "--kill-on-invalid-dep", "yes"
    yield from _own_arguments(cluster)
    for nodes in others:
        yield "hetjob", None
        yield from _nodes_options(plan, nodes)
        yield from _own_arguments(cluster)


def _nodes_options(plan: LaunchPlan, nodes: Nodes) -> Iterator[Option]:
    """What a component of a job asks for. A heterogeneous job has it anew for each: nothing is handed on."""
    cluster = nodes.cluster
    for name in ("partition", "account", "qos", "reservation", "constraint", "comment"):
        value = getattr(cluster, name)
        if value is not None:
            yield f"--{name}", value
    yield "--nodes", str(nodes.count)
    yield "--ntasks-per-node", str(nodes.tasks)
    if cluster.cpus_per_rank is not None:
        ranks = cluster.ranks // nodes.tasks if plan.job.trains else 1
        yield "--cpus-per-task", str(cluster.cpus_per_rank * ranks)
    if plan.job.trains:
        if cluster.memory is not None:
            yield "--mem", cluster.memory
        if cluster.exclusive:
            yield "--exclusive", None
    if nodes.gpus and cluster.gpu_request == "gpus-per-node":
        yield "--gpus-per-node", str(nodes.gpus)
    if nodes.gpus and cluster.gpu_request == "gres":
        yield "--gres", f"gpu:{nodes.gpus}"
    yield "--time", plan.job.time


def _own_arguments(cluster: ClusterConfig) -> Iterator[Option]:
    for argument in cluster.sbatch_arguments:
        name, equals, value = argument.partition("=")
        yield name, value if equals else None


def srun_options(plan: LaunchPlan) -> Iterator[str]:
    """What every srun of the script is given."""
    cluster = plan.cluster
    if cluster.mpi is not None:
        yield f"--mpi={cluster.mpi}"
    if cluster.container is not None:
        yield f"--container-image={cluster.container.image}"
        if cluster.container.mounts:
            yield f"--container-mounts={','.join(cluster.container.mounts)}"
        yield f"--container-workdir={plan.directory}"
        yield "--container-mount-home" if cluster.container.mount_home else "--no-container-mount-home"
    yield from cluster.srun_arguments


def _every_component(count: int) -> str:
    """What makes one step of all components, whose ranks are numbered in their order; nothing for a job of one."""
    return f" --het-group={','.join(map(str, range(count)))}" if count > 1 else ""


def _node_lists(count: int) -> str:
    return ",".join(["$SLURM_JOB_NODELIST", *(f"$SLURM_JOB_NODELIST_HET_GROUP_{i}" for i in range(1, count))])


def _command(plan: LaunchPlan) -> Iterator[str]:
    """The words that srun starts, quoted for the shell."""
    if plan.job.trains and plan.cluster.launcher == "torchrun":
        yield "torchrun --no-python"
        yield '--nnodes="$SLURM_NNODES"'
        yield f"--nproc-per-node={plan.cluster.ranks}"
        yield '--rdzv-id="$SLURM_JOB_ID-$attempt" --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"'
    yield shlex.quote(plan.cluster.executable)
    for word in plan.job.command:
        yield _word(word, plan)


def _word(word: str, plan: LaunchPlan) -> str:
    """One word of the command: paths are put in, the place in an array is the job's to say."""
    variables = {"array_index": "SLURM_ARRAY_TASK_ID", "array_size": "SLURM_ARRAY_TASK_COUNT"}
    marks = {name: f"\0{variable}\0" for name, variable in variables.items()}
    pieces = word.format(run=plan.run_file, run_dir=plan.run_dir, **marks).split("\0")
    # Every second piece is the name of a variable.
    quoted = [f'"${{{piece}}}"' if i % 2 else shlex.quote(piece) if piece else "" for i, piece in enumerate(pieces)]
    return "".join(quoted) or "''"


def _one_line(name: str, value: str | None) -> str | None:
    require(value is None or not set("\n\r\0") & set(value), f"{name}: expected one line, got {value!r}")
    return value


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nemo_xtoken.launch"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: `quote` is the escape
    )
    environment.filters["quote"] = shlex.quote
    environment.filters["comment"] = lambda text: " ".join(text.split())
    return environment
