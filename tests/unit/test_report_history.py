"""Checkpoints, starts and attempts of a run, from its directory."""

from __future__ import annotations

from pathlib import Path

from nemo_xtoken.integrations.megatron.checkpoint_files import finish_writing, start_writing
from nemo_xtoken.report.run_history import attempts, checkpoints, size, starts
from nemo_xtoken.report.run_page import write_report

LOG = """\
attempt 0 of job 7 on node[1-2] at 2026-11-24T11:46:52+00:00
step 1/300  loss 1.0
srun: error: node2: task 1: Exited with exit code 85
attempt 0 ended with exit code 85; newest checkpoint: step-00000032
requeued: exit code 85
slurmstepd-node1: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-24T11:47:05 DUE TO JOB REQUEUE ***
attempt 1 of job 7 on node[1-2] at 2026-11-24T11:47:27+00:00
slurmstepd-node1: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-24T11:50:00 DUE TO TIME LIMIT ***
"""
CHAINED = """\
attempt 0 of job 8 on node1 at 2026-11-24T12:00:00+00:00
unhealthy node node1: no disk
requeued: node1 failed the health check
attempt 1 of job 8 on node2 at 2026-11-24T12:01:00+00:00
attempt 1 ended with exit code 0; newest checkpoint: step-00000300
"""


def write_history(run: Path) -> None:
    """What a run that was launched on SLURM twice has left."""
    logs = run / "launch" / "logs"
    logs.mkdir(parents=True)
    (logs / "name-8.log").write_text(CHAINED)
    (logs / "name-7.log").write_text(LOG)
    (logs / "name-7-0-rank0.log").write_text("step 1/300  loss 1.0\n")
    for step, sums in ((100, {}), (200, {"a": "0" * 64})):
        (start_writing(run, step) / "a").write_bytes(b"x" * 3000)
        finish_writing(run / "checkpoints" / f"step-{step:08d}.tmp", sums)
    (run / "checkpoints" / "step-00000200" / "a").write_bytes(b"x")
    tensorboard = run / "tensorboard"
    tensorboard.mkdir()
    for seconds in (1795520857, 1795520821):
        (tensorboard / f"events.out.tfevents.{seconds}.node1.example.18974.0").write_bytes(b"")


def test_each_attempt_tells_how_it_ended_and_what_followed(tmp_path: Path) -> None:
    write_history(tmp_path)
    found = [(one.job, one.number, one.nodes, one.ended, one.followed) for one in attempts(tmp_path)]
    assert found == [
        (
            *("7", 0, "node[1-2]"),
            "exit code 85 (stopped by a signal, saved), newest checkpoint step-00000032",
            "requeued: exit code 85",
        ),
        ("7", 1, "node[1-2]", "no end in the log", "SLURM: time limit"),
        (
            *("8", 0, "node1", "no end in the log"),
            "unhealthy node node1: no disk; requeued: node1 failed the health check",
        ),
        ("8", 1, "node2", "exit code 0 (done), newest checkpoint step-00000300", ""),
    ]


def test_checkpoints_tell_whether_they_are_whole(tmp_path: Path) -> None:
    write_history(tmp_path)
    first, second = checkpoints(tmp_path)
    assert (first.step, first.size.split()[1], first.state) == (100, "KiB", "complete")
    assert (second.step, second.state) == (200, "not complete: a has 1 bytes instead of 3000")


def test_each_start_has_its_time_and_place(tmp_path: Path) -> None:
    write_history(tmp_path)
    assert [(one.time, one.host) for one in starts(tmp_path)] == [
        ("2026-11-24 11:47:01", "node1.example"),
        ("2026-11-24 11:47:37", "node1.example"),
    ]


def test_an_empty_directory_has_no_history(tmp_path: Path) -> None:
    assert (checkpoints(tmp_path), starts(tmp_path), attempts(tmp_path)) == ([], [], [])


def test_the_page_shows_attempts_where_there_are_some_and_else_the_starts(tmp_path: Path) -> None:
    write_history(tmp_path)
    html = write_report(tmp_path).read_text()
    assert "requeued: node1 failed the health check" in html
    for log in (tmp_path / "launch" / "logs").iterdir():
        log.unlink()
    html = write_report(tmp_path).read_text()
    assert "Started 2 times" in html
    assert '2026-11-24 11:47:37</th><td data-label="On">node1.example</td>' in html
    assert "This was not recorded." in html


def test_sizes_are_in_the_unit_that_suits_them() -> None:
    assert [size(count) for count in (0, 1023, 1024, 5 << 20, 3 << 40)] == [
        "0 bytes",
        "1,023 bytes",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]
