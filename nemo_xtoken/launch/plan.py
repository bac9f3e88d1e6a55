"""Everything that one launch is made from, checked before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.errors import ConfigError, require
from nemo_xtoken.launch.cluster import ClusterConfig
from nemo_xtoken.launch.job import ComponentConfig, JobConfig

COMPONENT_KEYS = ("partition", "constraint", "gpus_per_node", "ranks_per_node", "cpus_per_rank", "memory")
PLACEHOLDERS = ("run", "run_dir", "array_index", "array_size")


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind: all of a job's, or those of one component of a heterogeneous job.

    cluster  what such a node has
    tasks    that srun starts on each
    gpus     that each is asked for
    """

    count: int
    cluster: ClusterConfig
    tasks: int
    gpus: int


@dataclass(frozen=True)
class LaunchPlan:
    """One run as a job on a cluster. Paths are absolute, as they are on every node.

    directory  where `launch` was called: relative paths of the run begin there
    """

    run: RunConfig
    cluster: ClusterConfig
    job: JobConfig
    directory: Path

    def __post_init__(self) -> None:
        for word in self.job.command:
            _check_placeholders(word)
        require(
            not self.job.components or self.cluster.launcher == "srun",
            "a heterogeneous job needs launcher: srun, which numbers the ranks of all components; got torchrun",
        )
        if self.job.trains:
            _check_ranks(self.run, self.components)
            require(not self.job.array, "a training can't be an array: its ranks belong together; set job.array=0")
        wanted = "cuda" if self.cluster.gpus_per_node else "cpu"
        require(
            self.run.device == wanted,
            f"the cluster has {self.cluster.gpus_per_node} GPUs per node but the run has device: {self.run.device}; "
            f"set device={wanted} or take another cluster file",
        )

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self.directory / self.run.run_dir

    @property
    def folder(self) -> Path:
        """What launching writes: the run's config, the scripts, the logs, the ids of the jobs."""
        return self.run_dir / "launch"

    @property
    def run_file(self) -> Path:
        """The run's config as the job reads it."""
        return self.folder / "run.yaml"

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name.replace("{run_name}", self.run_dir.name)

    @property
    def script(self) -> Path:
        """The script that sbatch gets."""
        return self.folder / f"{self.name}.sbatch"

    @property
    def components(self) -> tuple[Nodes, ...]:
        """The job's nodes by kind; one of them where the job is not heterogeneous."""
        return (
            self._nodes(self.job.nodes, self.cluster),
            *(self._nodes(part.nodes, _cluster_of(part, self.cluster)) for part in self.job.components),
        )

    def _nodes(self, count: int, cluster: ClusterConfig) -> Nodes:
        if self.job.trains:
            return Nodes(count, cluster, cluster.tasks_per_node, cluster.gpus_per_node)
        return Nodes(count, cluster, self.job.tasks or 1, min(self.job.gpus, cluster.gpus_per_node))

    def check_files(self) -> None:
        """Raises ConfigError for a path of the run that is missing here or invisible in the container."""
        for name, path in self._files():
            require(path.exists(), f"{name}: {path} does not exist; a job that reads it would fail")
        if self.cluster.container is None:
            return
        for source in (mount.split(":")[0] for mount in self.cluster.container.mounts):
            require(Path(source).exists(), f"container.mounts: {source} does not exist on this machine")
        for name, path in (("run_dir", self.run_dir), ("the directory of the call", self.directory), *self._files()):
            _check_mounted(name, path, self.cluster.container.targets)

    def _files(self) -> Iterator[tuple[str, Path]]:
        """What a training reads."""
        if not self.job.trains:
            return
        for part in self.run.data.parts:
            yield "data", self.directory / part.path
        if self.run.student_checkpoint is not None:
            yield "student_checkpoint", self.directory / self.run.student_checkpoint
        for teacher in self.run.teachers:
            yield f"teacher {teacher.name!r}: checkpoint", self.directory / teacher.checkpoint
            if teacher.projection is not None:
                yield f"teacher {teacher.name!r}: projection", self.directory / teacher.projection


def _cluster_of(part: ComponentConfig, cluster: ClusterConfig) -> ClusterConfig:
    own = {name: getattr(part, name) for name in COMPONENT_KEYS if getattr(part, name) is not None}
    return replace(cluster, **own)


def _check_ranks(run: RunConfig, components: tuple[Nodes, ...]) -> None:
    ranks, wanted = sum(nodes.count * nodes.cluster.ranks for nodes in components), run.world_size
    kinds = " + ".join(f"{nodes.count} nodes x {nodes.cluster.ranks} ranks" for nodes in components)
    remote = "".join(
        f" + teacher {teacher.name!r} {_product(teacher.own_layout)}" for teacher in run.teachers if teacher.num_ranks
    )
    total = f", {wanted} in all" if remote else ""
    require(
        ranks == wanted,
        f"{kinds} are {ranks}, but the run's layout is {_product(run.parallel)}{remote}{total}; "
        f"{_what_fits(run, ranks)}",
    )
    of_student = components[0].count * components[0].cluster.ranks
    require(
        len(components) == 1 or of_student == run.parallel.world_size,
        f"the student's {run.parallel.world_size} ranks belong on the job's own nodes, which have {of_student}, and "
        "those of its teachers on the components; set job.nodes, or nodes of the components",
    )


def _product(layout: ParallelConfig) -> str:
    return (
        f"tensor {layout.tensor_model_parallel_size} x pipeline {layout.pipeline_model_parallel_size} x context "
        f"{layout.context_parallel_size} x data {layout.data_parallel_size} = {layout.world_size} ranks"
    )


def _what_fits(run: RunConfig, ranks: int) -> str:
    """The data parallel size that would make the run's layout as large as the job, where there is one."""
    others = run.parallel.world_size // run.parallel.data_parallel_size
    of_teachers = run.world_size - run.parallel.world_size
    of_student = ranks - of_teachers
    if of_student <= 0 or of_student % others:
        beside = f", beside the teachers' {of_teachers}," if of_teachers else ""
        return f"set job.nodes so that its ranks{beside} are a multiple of {others}"
    return f"set parallel.data_parallel_size={of_student // others} or job.nodes"


def _check_placeholders(word: str) -> None:
    try:
        word.format(**dict.fromkeys(PLACEHOLDERS, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"job.command: {word!r} has an unknown placeholder; valid are {', '.join(PLACEHOLDERS)} in braces"
        ) from error


def _check_mounted(name: str, path: Path, targets: tuple[str, ...]) -> None:
    is_mounted = any(PurePath(path).is_relative_to(target) for target in targets)
    require(
        is_mounted,
        f"{name}: {path} lies in none of the container's mounts ({', '.join(targets) or 'none'}); "
        "add SOURCE:TARGET to container.mounts with the same path on both sides",
    )
