"""What is written is read back before older checkpoints go; a disk that is full or lies costs no good checkpoint."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.capture import CaptureFixture

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.errors import CheckpointError
from nemo_xtoken.integrations.megatron import checkpoint_files as files
from nemo_xtoken.integrations.megatron import launch
from tests.distributed import toy
from tests.forked import Forked, nemo_xtoken

pytestmark = pytest.mark.timeout(240)

DP2 = ParallelConfig(data_parallel_size=2)
BACKGROUND = pytest.param(True, marks=pytest.mark.slow)
WAYS = pytest.mark.parametrize("async_save", [False, BACKGROUND], ids=["at_once", "in_background"])


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data, W, a trained teacher, and a student's run on one rank."""
    launch(toy.student_run(toy_folder, "finished"))
    return toy_folder


def names(run: RunConfig) -> list[str]:
    return sorted(path.name for path in (Path(run.run_dir) / files.FOLDER).iterdir())


def test_checkpoints_have_the_sums_of_all_their_files(folder: Path) -> None:
    checkpoint = files.checkpoint_path(folder / "finished", 6)
    sums = files.read_sums(checkpoint)
    assert {*sums, files.MARKER} == {path.name for path in checkpoint.iterdir()}
    listed = "".join(f"{value}  {name}\n" for name, value in sums.items())
    command = ["sha256sum", "--check", "--quiet"]
    assert subprocess.run(command, input=listed, text=True, cwd=checkpoint, check=False).returncode == 0
    assert files.what_differs(checkpoint, sums) is None
    (name, _), *_ = sums.items()
    assert files.what_differs(checkpoint, {name: "0" * 64}) is not None


def flip_a_bit(checkpoint: Path) -> None:
    largest = max(checkpoint.glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_checkpoint_of_which_a_bit_is_wrong_is_passed_over(folder: Path, capfd: CaptureFixture[str]) -> None:
    shutil.copytree(folder / "finished", folder / "bit")
    run = toy.student_run(folder, "bit")
    run = replace(run, train=replace(run.train, steps=7), parallel=DP2)
    latest = files.checkpoint_path(Path(run.run_dir), 6)
    flip_a_bit(latest)
    assert files.what_is_missing(latest) is None
    launch(run)
    output, errors = capfd.readouterr()
    assert "after step 4" in output
    assert re.search(r"step-00000006 is passed over: __0_\d\.distcp is not what was written", errors)
    assert files.what_differs(latest, files.read_sums(latest)) is None


@WAYS
def test_what_is_not_read_back_as_it_was_written_is_no_checkpoint(
    folder: Path, async_save: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk returns other bytes for the files of rank 0 once their sums are made."""
    whole, lying = files.what_differs, files.checkpoint_path(folder / f"lying_{async_save}", 6).with_suffix(".tmp")

    def lie(checkpoint: Path, sums: dict[str, str]) -> str | None:
        if checkpoint == lying and any(name.startswith("__0_") for name in sums):
            flip_a_bit(checkpoint)
        return whole(checkpoint, sums)

    monkeypatch.setattr(files, "what_differs", lie)
    run = replace(toy.student_run(folder, f"lying_{async_save}"), parallel=DP2)
    run = replace(run, train=replace(run.train, keep_checkpoints=1, async_save=async_save))
    with pytest.raises(CheckpointError, match=r"was written, but __0_\d\.distcp is not what was written"):
        launch(run)
    assert files.latest_complete(Path(run.run_dir)) == files.checkpoint_path(Path(run.run_dir), 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, where root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk; a limit of file sizes is tested below")
@WAYS
def test_a_full_disk_leaves_the_last_good_checkpoint(folder: Path, small_disk: Path, async_save: bool) -> None:
    run = replace(toy.student_run(folder), run_dir=str(small_disk / "run"), parallel=DP2)
    run = replace(run, train=replace(run.train, async_save=async_save))
    launch(replace(run, train=replace(run.train, steps=4)))
    before = names(run)
    room = shutil.disk_usage(small_disk).free
    size = sum(file.stat().st_size for file in files.checkpoint_path(Path(run.run_dir), 4).iterdir())
    (small_disk / "filler").write_bytes(b"0" * (room - size // 2))
    with pytest.raises(
        CheckpointError, match=r"after step 6 can't be written: .*; 0.\d\d GB are free in .*step-00000004 is complete"
    ):
        launch(run)
    assert names(run) == before
    assert shutil.disk_usage(small_disk).free > size // 4
    (small_disk / "filler").unlink()
    launch(run)
    assert names(run) == ["step-00000004", "step-00000006"]


def test_a_file_that_may_not_grow_leaves_the_last_good_checkpoint(folder: Path) -> None:
    shutil.copytree(folder / "finished", folder / "limited")
    run = toy.student_run(folder, "limited")
    run = replace(run, train=replace(run.train, steps=7))
    before, limit = names(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in files.checkpoint_path(Path(run.run_dir), 6).iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, limit[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"can't be written: .*step-00000006 is complete and stays; make room"
        ):
            launch(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert names(run) == before


def test_a_run_saved_in_the_background_is_that_of_one_saved_at_once(folder: Path) -> None:
    runs = [replace(toy.student_run(folder, name), parallel=DP2) for name in ("background", "at_once")]
    runs[0] = replace(runs[0], train=replace(runs[0].train, async_save=True, checkpoint_interval=1))
    for run in runs:
        launch(run)
    assert toy.metrics(runs[0]) == toy.metrics(runs[1])
    assert names(runs[0]) == ["step-00000005", "step-00000006"]
    for checkpoint in (Path(runs[0].run_dir) / files.FOLDER).iterdir():
        assert files.what_is_missing(checkpoint) is None
        assert files.what_differs(checkpoint, files.read_sums(checkpoint)) is None
        assert {*files.read_sums(checkpoint), files.MARKER} == {path.name for path in checkpoint.iterdir()}


def test_a_run_saved_in_the_background_goes_on_with_other_data_parallel_ranks(folder: Path) -> None:
    """What was written while the training went on is the state of the step it is named after."""
    run = toy.student_run(folder, "moves")
    run = replace(run, train=replace(run.train, async_save=True, keep_checkpoints=3))
    launch(run)
    expected = toy.metrics(run)
    assert expected == toy.metrics(toy.student_run(folder, "finished"))
    for step in (4, 6):
        shutil.rmtree(files.checkpoint_path(Path(run.run_dir), step))
    launch(replace(run, parallel=DP2))
    for line, same in zip(toy.metrics(run), expected, strict=True):
        assert line == pytest.approx(same, rel=1e-4)
        assert line["loss"] == pytest.approx(same["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_end_in_the_middle_of_a_background_save(folder: Path, number: signal.Signals) -> None:
    """Killed, the checkpoint before is the latest; asked to stop, the one being written is finished before exit 85."""
    name = f"ended_{number.name}"
    run = toy.student_run(folder, name)
    train = replace(run.train, steps=24, checkpoint_interval=3, async_save=True)
    run, whole = (replace(toy.student_run(folder, each), train=train, parallel=DP2) for each in (name, "not_ended"))
    whole = replace(whole, train=replace(train, checkpoint_interval=0, async_save=False))
    save_run(run, folder / f"{name}.yaml")
    process = Forked(nemo_xtoken, "train", folder / f"{name}.yaml", log=folder / f"{name}_log")
    saved = Path(run.run_dir) / files.FOLDER
    deadline = time.monotonic() + 100
    while not any(path.suffix == ".tmp" and files.step_of(path.with_suffix("")) > 6 for path in _listed(saved)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    code = process.wait()
    assert code == (85 if number == signal.SIGTERM else -9)
    latest = files.latest_complete(Path(run.run_dir))
    assert latest is not None
    assert files.what_differs(latest, files.read_sums(latest)) is None
    if number == signal.SIGTERM:
        assert not [path for path in _listed(saved) if path.suffix == ".tmp"]
        lines = (Path(run.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[-1])["step"] == files.step_of(latest)
    launch(run)
    launch(whole)
    assert toy.metrics(run) == toy.metrics(whole)


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
