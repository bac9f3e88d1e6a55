"""A run that is killed, half-written or moved goes on as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.capture import CaptureFixture

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.errors import CheckpointError, ConfigError
from nemo_xtoken.integrations.megatron import checkpoint_files as files
from nemo_xtoken.integrations.megatron import launch, local_ranks
from nemo_xtoken.integrations.megatron.metrics import keep_lines_up_to
from nemo_xtoken.integrations.megatron.run_dir import locked
from nemo_xtoken.report.run_history import starts
from tests.distributed import toy, train_toy
from tests.forked import Forked

STEPS = 14

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data, W, a trained teacher, and a student's run with checkpoints after steps 4 and 6."""
    launch(toy.student_run(toy_folder, "finished"))
    return toy_folder


def copy_of_finished(folder: Path, name: str) -> RunConfig:
    """A run directory of its own with everything that the finished run left."""
    shutil.copytree(folder / "finished", folder / name, dirs_exist_ok=True)
    return toy.student_run(folder, name)


def start(folder: Path, name: str, tp_size: int) -> Forked:
    return Forked(train_toy.main, str(folder), name, str(STEPS), str(tp_size), log=folder / f"{name}_log")


def wait_until(condition: Callable[[], bool], process: Forked) -> None:
    while not condition():
        assert process.poll() is None, process.texts()
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("tp_size", [1, 2])
def test_a_run_killed_twice_has_the_curve_of_one_that_was_not(folder: Path, tp_size: int) -> None:
    whole, killed = f"whole_{tp_size}", f"killed_{tp_size}"
    assert start(folder, whole, tp_size).wait() == 0
    log, checkpoints = folder / killed / "metrics.jsonl", folder / killed / files.FOLDER
    moments: list[Callable[[], bool]] = [
        lambda: lines_in(log) >= 5,
        lambda: (checkpoints / "step-00000012.tmp").exists(),
    ]
    for moment in moments:
        process = start(folder, killed, tp_size)
        wait_until(moment, process)
        ranks = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert ranks
        wait_for_end_of(ranks)
    process = start(folder, killed, tp_size)
    assert process.wait() == 0, process.texts()
    output, _ = process.texts()
    assert f"resuming {folder / killed} after step" in output
    configs = [toy.student_run(folder, name) for name in (whole, killed)]
    curves = [toy.metrics(config) for config in configs]
    assert [line["step"] for line in curves[1]] == list(range(1, STEPS + 1))
    assert curves[0] == curves[1]
    endings = [one.ended for one in starts(folder / killed)]
    assert ["without a word" in ended for ended in endings] == [True, True, False]
    assert endings[-1] == f"It finished, after step {STEPS} of {STEPS}."


def wait_for_end_of(processes: list[int]) -> None:
    """Ranks die with their parent; they are given a moment for it."""
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in processes):
        assert time.monotonic() < deadline, "a rank outlived its parent"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def fork_a_writer_that_forks(pids: Path) -> int:
    local_ranks.end_children_with_this()

    def write(depth: int) -> None:
        if depth:
            multiprocessing.get_context("fork").Process(target=write, args=(depth - 1,)).start()
        with pids.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(30)

    write(2)
    return 0


def test_what_a_killed_rank_has_forked_ends_with_it(tmp_path: Path) -> None:
    rank = Forked(fork_a_writer_that_forks, tmp_path / "pids", log=tmp_path / "log")
    wait_until(lambda: lines_in(tmp_path / "pids") == 3, rank)
    pids = [int(line) for line in (tmp_path / "pids").read_text(encoding="utf-8").split()]
    assert all(is_running(pid) for pid in pids)
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    wait_for_end_of(pids)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_with_one_line(folder: Path) -> None:
    process = start(folder, "rank_killed", 2)
    wait_until(lambda: lines_in(folder / "rank_killed" / "metrics.jsonl") >= 2, process)
    ranks = children(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(timeout=30) == 1
    _, errors = process.texts()
    assert errors.strip() == "error: rank 1 was ended by SIGKILL; the same command goes on from the latest checkpoint"
    assert "rank 1 was ended by SIGKILL" in starts(folder / "rank_killed")[0].ended
    wait_for_end_of(ranks)


def truncate_a_file(checkpoint: Path) -> None:
    largest = max(checkpoint.glob("*.distcp"), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def delete_a_file(checkpoint: Path) -> None:
    next(checkpoint.glob("*.distcp")).unlink()


def delete_the_marker(checkpoint: Path) -> None:
    (checkpoint / files.MARKER).unlink()


def leave_it_unnamed(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_suffix(".tmp"))


@pytest.mark.parametrize("damage", [truncate_a_file, delete_a_file, delete_the_marker, leave_it_unnamed])
def test_a_half_written_checkpoint_is_passed_over(
    folder: Path, damage: Callable[[Path], None], capfd: CaptureFixture[str]
) -> None:
    config = copy_of_finished(folder, damage.__name__)
    expected = toy.metrics(config)
    latest = files.checkpoint_path(Path(config.run_dir), 6)
    damage(latest)
    launch(config)
    output, errors = capfd.readouterr()
    assert "after step 4" in output
    assert errors.count("is passed over") == (0 if damage is leave_it_unnamed else 1)
    assert toy.metrics(config) == expected
    assert files.what_is_missing(latest) is None
    assert sorted(path.name for path in latest.parent.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_finished_run_says_so(folder: Path, capfd: CaptureFixture[str]) -> None:
    launch(toy.student_run(folder, "finished"))
    assert "is finished: 6 steps are done; raise train.steps to go on" in capfd.readouterr().out


def test_a_run_goes_on_in_another_layout(folder: Path) -> None:
    config = copy_of_finished(folder, "other_layout")
    expected = toy.metrics(config)
    shutil.rmtree(files.checkpoint_path(Path(config.run_dir), 6))
    launch(replace(config, parallel=ParallelConfig(tensor_model_parallel_size=2)))
    for line, same in zip(toy.metrics(config), expected, strict=True):
        assert line == pytest.approx(same, rel=1e-4)
        assert line["loss"] == pytest.approx(same["loss"], rel=1e-5)


def test_what_decides_a_run_may_not_change(folder: Path) -> None:
    config = copy_of_finished(folder, "changed")
    changed = replace(
        config, train=replace(config.train, seed=7, steps=9), student=replace(config.student, rotary_base=500)
    )
    with pytest.raises(ConfigError, match=r"another student\.rotary_base, train\.seed: give back the old value"):
        launch(changed)
    launch(replace(config, train=replace(config.train, steps=7, log_interval=5)))
    assert [line["step"] for line in toy.metrics(config)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_teacher_that_was_trained_on_is_noticed(folder: Path) -> None:
    config = copy_of_finished(folder, "other_teacher")
    (teacher,) = config.teachers
    copy = folder / "teacher_trained_on"
    shutil.copytree(teacher.checkpoint, copy)
    files.checkpoint_path(copy, 40).rename(files.checkpoint_path(copy, 41))
    moved = replace(config, teachers=(replace(teacher, checkpoint=str(copy)),))
    save_run(moved, Path(config.run_dir) / "config.yaml")
    with pytest.raises(CheckpointError, match=r"was started with another teacher checkpoint"):
        launch(replace(moved, train=replace(moved.train, steps=7)))


def test_two_jobs_cannot_train_in_one_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_xtoken.integrations.megatron.run_dir.LOCK_PATIENCE", 0.2)
    config = toy.student_run(folder, "locked")
    with locked(Path(config.run_dir)), pytest.raises(ConfigError, match=r"another job is training in .*locked"):
        launch(config)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        written = files.start_writing(tmp_path, step)
        (written / "weights").write_bytes(b"1234")
        files.finish_writing(written)
    files.start_writing(tmp_path, 5)
    (files.checkpoint_path(tmp_path, 3) / "weights").write_bytes(b"12")
    assert files.what_is_missing(files.checkpoint_path(tmp_path, 3)) == "weights has 2 bytes instead of 4"
    files.prune(tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / files.FOLDER).iterdir()) == ["step-00000002", "step-00000004"]
    assert files.latest_complete(tmp_path) == files.checkpoint_path(tmp_path, 4)


def test_a_named_checkpoint_has_to_be_complete(tmp_path: Path) -> None:
    written = files.start_writing(tmp_path, 3)
    checkpoint = files.finish_writing(written)
    assert files.find_checkpoint(checkpoint, "teacher") == files.find_checkpoint(tmp_path, "teacher") == checkpoint
    (checkpoint / files.MARKER).unlink()
    with pytest.raises(CheckpointError, match=r"teacher: checkpoint .* is not complete"):
        files.find_checkpoint(checkpoint, "teacher")


def test_metrics_are_cut_to_whole_lines_up_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    keep_lines_up_to(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
