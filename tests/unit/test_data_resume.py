from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.data import Manifest, PreparedData, prepare
from nemo_xtoken.data.shard_writer import ShardWriter
from nemo_xtoken.data.shards import MOST_SHARDS, cut_sources
from nemo_xtoken.data.workers import run_tasks
from nemo_xtoken.errors import DataError, XTokenError
from nemo_xtoken.tokenizers.protocol import Tokenizer
from tests.fake_tokenizers import random_texts, write_jsonl
from tests.small_tokenizers import rank_file


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    return tokenizers.load(f"{rank_file(tmp_path_factory.mktemp('rank'))}?pattern=gpt2"), tokenizers.load("bytes")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of both kinds, which make several shards."""
    monkeypatch.setattr("nemo_xtoken.data.shards.SHARD_BYTES", 4_000)
    for i, text in enumerate(random_texts(5, seed=2)):
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
    write_jsonl(tmp_path / "a.jsonl", [*random_texts(90), ""])
    write_jsonl(tmp_path / "b.jsonl", random_texts(20, seed=3))
    return sorted(path for path in tmp_path.iterdir())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def forked(work: Callable[[], Any]) -> int:
    """Start `work` in a process of its own and return its id; it ends with 0 where nothing was raised."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def parts(out: Path) -> list[Path]:
    folder = out.with_name(f".{out.name}.partial")
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def test_shards_hold_every_slice_once_and_are_of_similar_size(sources: list[Path]) -> None:
    shards = cut_sources(sources, pytest.fail, threads=2).shards
    assert len(shards) > 5
    assert len(shards[0].slices) >= 5, "small files share a shard"
    slices = [part for shard in shards for part in shard.slices]
    assert [part.path for part in slices] == sorted(part.path for part in slices)
    assert sum(part.file_bytes for part in slices) == sum(path.stat().st_size for path in sources)
    assert max(shard.file_bytes for shard in shards) < 6_000


def test_large_sources_make_larger_shards_and_not_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_xtoken.data.shards.SHARD_BYTES", 10)
    path = tmp_path / "x.txt"
    path.write_bytes(b"x\n" * 10 * MOST_SHARDS)
    lines = path.rename(tmp_path / "x.jsonl")
    shards = cut_sources([lines], pytest.fail, threads=1).shards
    assert MOST_SHARDS // 2 < len(shards) <= MOST_SHARDS + 1


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, sources: list[Path], sides: tuple[Tokenizer, Tokenizer], workers: int
) -> None:
    calls: list[tuple[int, int]] = []
    alone = prepare(sources, tmp_path / "alone", *sides)
    shared = prepare(
        sources, tmp_path / "shared", *sides, workers=workers, on_progress=lambda *call: calls.append(call)
    )
    assert alone == shared
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")
    size = sum(path.stat().st_size for path in sources)
    assert calls == sorted(calls)
    assert calls[-1] == (size, size)
    data = PreparedData.open(tmp_path / "shared")
    assert (len(data), data.manifest.empty_documents) == (5 + 90 + 20, 1)
    everything = b"".join(bytes((data.teachers[0].tokens(i)[:-1] - 3).tolist()) for i in range(len(data)))
    assert everything == "".join([*random_texts(5, seed=2), *random_texts(90), *random_texts(20, seed=3)]).encode()


def test_a_killed_run_goes_on_with_other_workers_to_the_same_bytes(
    tmp_path: Path, sources: list[Path], sides: tuple[Tokenizer, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_xtoken.data.shards.SHARD_BYTES", 1_500)
    prepare(sources, tmp_path / "whole", *sides)
    out, write, written = tmp_path / "out", ShardWriter.write, tmp_path / "written"
    limit = sys.maxsize

    def write_until_limit(self: ShardWriter, *arguments: Any) -> None:
        with written.open("a") as file:
            file.write("x")
        if len(parts(out)) >= limit:
            time.sleep(60)
        write(self, *arguments)

    monkeypatch.setattr(ShardWriter, "write", write_until_limit)
    kills = 0
    for workers in (2, 3, 1):
        before = parts(out)
        limit = len(before) + 2
        process = forked(lambda workers=workers: prepare(sources, out, *sides, workers=workers))
        while len(parts(out)) < limit:
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        kills += workers
        assert set(before) <= set(parts(out)), "what is finished stays"
        assert not out.exists()
    limit = sys.maxsize
    shards = len(cut_sources(sources, pytest.fail, threads=1).shards)
    assert 6 <= len(parts(out)) < shards, "there is work left"
    prepare(sources, out, *sides, workers=2)
    assert contents(out) == contents(tmp_path / "whole")
    assert not out.with_name(".out.partial").exists()
    assert shards <= written.stat().st_size <= shards + kills, "finished shards are not done again"


FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def killed_at(event: int, folder: Path, work: Callable[[], Any]) -> int:
    """Run `work` in a process that is killed by the given of its calls to the file system; its exit code."""

    def run() -> None:
        count = 0

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if name in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
                count += 1
                if count == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return ended(forked(run))


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_any_of_its_file_operations_a_run_can_be_repeated(
    tmp_path: Path, sides: tuple[Tokenizer, Tokenizer], overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_xtoken.data.shards.SHARD_BYTES", 1_000)
    old = [write_jsonl(tmp_path / "old.jsonl", random_texts(3, seed=9))]
    source = [write_jsonl(tmp_path / "x.jsonl", random_texts(12))]
    prepare(source, tmp_path / "whole", *sides)
    expected, out = contents(tmp_path / "whole"), tmp_path / "made" / "out"

    def work() -> None:
        prepare(source, out, *sides, overwrite=overwrite)

    event = code = 1
    while code:
        if overwrite:
            prepare(old, out, *sides, overwrite=True)
        code = killed_at(event, out.parent, work)
        assert code in (0, -signal.SIGKILL)
        if out.exists() and not overwrite:
            assert contents(out) == expected, "whole or not at all"
        work()
        assert contents(out) == expected
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        if not overwrite:
            shutil.rmtree(out)
        event += 5
    assert event > 40


def test_the_work_of_other_text_or_tokenizers_is_thrown_away(
    tmp_path: Path, sources: list[Path], sides: tuple[Tokenizer, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupt(*call: int) -> None:
        if len(parts(out)) > 2:
            raise KeyboardInterrupt

    for change in ("text", "teacher", "none"):
        with pytest.raises(KeyboardInterrupt):
            prepare(sources, out, *sides, on_progress=interrupt)
        kept = {path: path.stat().st_ctime_ns for path in parts(out)}
        assert len(kept) == 3
        if change == "text":
            write_jsonl(sources[-1], random_texts(20, seed=4))
        teacher = sides[0] if change == "teacher" else sides[1]
        with pytest.raises(KeyboardInterrupt):
            prepare(sources, out, sides[0], teacher, on_progress=interrupt)
        now = {path: path.stat().st_ctime_ns for path in parts(out)}
        assert (kept.items() <= now.items()) == (change == "none")


def test_an_error_in_the_text_keeps_what_is_done_and_skip_goes_on(
    tmp_path: Path, sources: list[Path], sides: tuple[Tokenizer, Tokenizer]
) -> None:
    with sources[-1].open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match=r"b\.jsonl line 21 is not JSON"):
        prepare(sources, tmp_path / "out", *sides, workers=2)
    done = len(parts(tmp_path / "out"))
    assert done > 2
    prepare(sources, tmp_path / "whole", *sides, on_error="skip")
    manifest = prepare(sources, tmp_path / "out", *sides, on_error="skip")
    assert manifest.skipped_documents == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_part_with_skipped_documents_is_not_taken_for_good(
    tmp_path: Path, sources: list[Path], sides: tuple[Tokenizer, Tokenizer]
) -> None:
    sources[5].write_text("{\n" + sources[5].read_text())

    def interrupt(*call: int) -> None:
        if len(parts(tmp_path / "out")) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tmp_path / "out", *sides, on_error="skip", on_progress=interrupt)
    with pytest.raises(DataError, match="line 1 is not JSON"):
        prepare(sources, tmp_path / "out", *sides)


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Sets the largest size of a file that can be written: as when the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_in_one_line_and_the_next_run_goes_on(
    tmp_path: Path,
    sources: list[Path],
    sides: tuple[Tokenizer, Tokenizer],
    small_files: Callable[[int], None],
    workers: int,
) -> None:
    prepare(sources, tmp_path / "whole", *sides)
    largest = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    small_files(largest // 3)  # enough for a shard, but not for all of them
    out = tmp_path / "out"
    with pytest.raises(DataError, match=f"cannot write .*out: {os.strerror(errno.EFBIG)}; mend it and run the same"):
        prepare(sources, out, *sides, workers=workers)
    done = {path: path.stat().st_ctime_ns for path in parts(out)}
    assert len(done) > 5
    small_files(resource.RLIM_INFINITY)
    prepare(sources, out, *sides, workers=workers)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_second_run_at_once_is_refused_and_harms_nothing(
    tmp_path: Path, sources: list[Path], sides: tuple[Tokenizer, Tokenizer]
) -> None:
    codes: list[int] = []

    def second_run() -> None:
        with pytest.raises(DataError, match=r"another process is preparing .*out; wait for it or choose another"):
            prepare(sources, tmp_path / "out", *sides)

    manifest = prepare(
        sources, tmp_path / "out", *sides, on_progress=lambda *call: codes.append(ended(forked(second_run)))
    )
    assert set(codes) == {0}
    assert Manifest.load(tmp_path / "out") == manifest


def test_workers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    def work(task: int, report: Callable[[int], None]) -> None:
        (tmp_path / str(task)).write_text(str(os.getpid()))
        time.sleep(60)

    process = forked(lambda: run_tasks([0, 1], work, 2, lambda amount: None))
    while len([path for path in tmp_path.iterdir() if path.read_text()]) < 2:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    ended(process)
    for path in tmp_path.iterdir():
        status = Path("/proc") / path.read_text() / "status"
        for _ in range(500):
            if not status.exists() or "State:\tZ" in status.read_text():
                break
            time.sleep(0.01)
        else:
            pytest.fail("a worker is still there")


def test_a_worker_that_dies_or_fails_ends_all_with_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def die(task: int, report: Callable[[int], None]) -> None:
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def fail(task: int, report: Callable[[int], None]) -> None:
        raise ValueError("of the code\nitself")

    with pytest.raises(XTokenError, match=r"ended by SIGKILL, .* with fewer workers goes on where it was"):
        run_tasks([0, 1, 2], die, 3, lambda amount: None)
    with pytest.raises(XTokenError, match=r"a worker failed: ValueError: of the code$"):
        run_tasks([0, 1], fail, 2, lambda amount: None)
    assert "Traceback" in capfd.readouterr().err


def test_every_task_is_done_once_and_all_progress_is_reported(tmp_path: Path) -> None:
    def work(task: int, report: Callable[[int], None]) -> None:
        (tmp_path / str(task)).touch(exist_ok=False)
        report(task)

    reported: list[int] = []
    for processes in (1, 3):
        reported.clear()
        tasks = [task + 100 * processes for task in range(20)]
        run_tasks(tasks, work, processes, reported.append)
        assert sum(reported) == sum(tasks)
    assert len(list(tmp_path.iterdir())) == 40
    run_tasks([], work, 4, reported.append)
