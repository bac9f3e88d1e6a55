"""Ranks of the student and of remote teachers: how many a job has, whose each is, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.config import ParallelConfig, RunConfig, TeacherConfig
from nemo_xtoken.config_io import differences, load_run
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.run_dir import adopt_config, check_config
from nemo_xtoken.launch import ClusterConfig, JobConfig, LaunchPlan
from tests.conftest import CHECKOUT

QUICKSTART = CHECKOUT / "examples" / "quickstart.yaml"
TP4 = ParallelConfig(tensor_model_parallel_size=4, data_parallel_size=2)


def run(student_dp_size: int = 8, **teacher: Any) -> RunConfig:
    """The quickstart's student on so many ranks, and its teacher on others."""
    config = load_run(QUICKSTART, ["train.micro_batch_size=1", "train.global_batch_size=48", "device=cuda"])
    remote = replace(config.teachers[0], **{"kind": "remote", **teacher})
    return replace(config, teachers=(remote,), parallel=ParallelConfig(data_parallel_size=student_dp_size))


def test_ranks_are_the_students_and_then_each_remote_teachers() -> None:
    config = run(parallel=TP4)
    own = replace(config.teachers[0], name="own", parallel=None)
    here = replace(config.teachers[0], name="here", kind="colocated", parallel=None)
    several = replace(config, teachers=(config.teachers[0], here, own))
    assert (config.world_size, several.world_size) == (16, 17)
    names = several.rank_names()
    assert names[7] == "rank 7"
    assert names[8] == f"rank 8 (teacher {config.teachers[0].name!r})"
    assert names[16] == "rank 16 (teacher 'own')"
    assert len(names) == 17


def test_where_a_teacher_runs_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    config = replace(run(parallel=TP4), run_dir=str(tmp_path))
    adopt_config(config)
    (teacher,) = config.teachers
    for other in (
        replace(teacher, parallel=replace(TP4, data_parallel_size=4)),
        replace(teacher, parallel=None, patience_seconds=5.0),
        replace(teacher, kind="colocated", parallel=None),
    ):
        changed = replace(config, teachers=(other,))
        assert differences(config, changed)
        check_config(changed)
    with pytest.raises(ConfigError, match=r"another teachers.0.weight"):
        check_config(replace(config, teachers=(replace(teacher, weight=2.0),)))


def refused(**teacher: Any) -> str:
    with pytest.raises(ConfigError) as error:
        run(**teacher)
    return str(error.value)


def test_what_a_remote_teacher_can_not_be_is_refused() -> None:
    (teacher,) = run().teachers
    heads = teacher.model.num_attention_heads
    assert f"{heads} attention heads are not divisible by tensor_model_parallel_size {heads + 1}" in refused(
        parallel=ParallelConfig(tensor_model_parallel_size=heads + 1)
    )
    assert "global_batch_size 48 is not divisible by micro_batch_size x its data_parallel_size = 5" in refused(
        parallel=ParallelConfig(data_parallel_size=5)
    )
    virtual = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    assert "a teacher has no virtual pipeline stages" in refused(parallel=virtual)
    assert "patience_seconds must be positive, got 0" in refused(patience_seconds=0.0)
    with pytest.raises(ConfigError, match="a cached teacher has no model and no layout; leave out parallel"):
        TeacherConfig(model=teacher.model, checkpoint="x", kind="cached", parallel=TP4)


def test_expert_parallelism_is_refused_with_the_reason() -> None:
    for key in ("teachers.0.parallel.expert_model_parallel_size=2", "teachers.0.model.num_moe_experts=8"):
        with pytest.raises(
            ConfigError, match=r"unknown key teachers.0.*; models with experts, .* layers here are dense"
        ):
            load_run(QUICKSTART, [key])


def test_a_colocated_teacher_has_as_many_ranks_as_the_student() -> None:
    assert run(kind="colocated", parallel=TP4, offload="both").world_size == 8
    assert "parallel needs 4 ranks, but a colocated teacher has the student's 8; change its data_par" in refused(
        kind="colocated", parallel=replace(TP4, data_parallel_size=1)
    )
    odd = ParallelConfig(tensor_model_parallel_size=8)
    assert "attention heads are not divisible by tensor_model_parallel_size 8" in refused(
        kind="colocated", parallel=odd
    )
    assert "set kind=colocated and parallel (it may be the student's)" in refused(kind="remote", offload="hidden")
    assert "in a layout of its own" in refused(kind="colocated", offload="parameters")


def test_a_job_has_ranks_for_the_student_and_the_teacher() -> None:
    cluster = ClusterConfig(gpus_per_node=8)
    two_nodes = JobConfig(nodes=2, time="1")
    LaunchPlan(run=run(parallel=TP4), cluster=cluster, job=two_nodes, directory=Path("/x"))
    name = run().teachers[0].name
    message = (
        "3 nodes x 8 ranks are 24, but the run's layout is tensor 1 x pipeline 1 x context 1 x data 8 = 8 ranks + "
        f"teacher {name!r} tensor 4 x pipeline 1 x context 1 x data 2 = 8 ranks, 16 in all; "
        "set parallel.data_parallel_size=16 or job.nodes"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        LaunchPlan(run=run(parallel=TP4), cluster=cluster, job=replace(two_nodes, nodes=3), directory=Path("/x"))
    with pytest.raises(ConfigError, match="so that its ranks, beside the teachers' 8, are a multiple of 1"):
        LaunchPlan(run=run(parallel=TP4), cluster=cluster, job=replace(two_nodes, nodes=1), directory=Path("/x"))
