"""The W of a run that names none: built by rank 0 alone, found by every rank, there again later."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch.distributed as dist

from nemo_xtoken import tokenizers
from nemo_xtoken.data.manifest import Side
from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.integrations.megatron import projection_file as room
from nemo_xtoken.projection import ProjectionMatrix, build_if_missing
from tests.distributed.ranks import run_ranks
from tests.small_tokenizers import rank_file


def side(spec: str) -> Side:
    tokenizer = tokenizers.load(spec)
    return Side(spec=spec, fingerprint=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size, bos_id=None, eos_id=None)


def build_slowly(*args: object) -> Path:
    assert dist.get_rank() == 0, "only rank 0 builds"
    time.sleep(0.5)
    return build_if_missing(*args)  # type: ignore[arg-type]


def path_and_time(run_dir: Path, student: Side, teacher: Side) -> tuple[str, int, int]:
    room.build_if_missing = build_slowly
    path = room.projection_file(None, run_dir, student, teacher)
    matrix = ProjectionMatrix.load(path)
    matrix.check_pair(student.fingerprint, teacher.fingerprint)
    return str(path), path.stat().st_mtime_ns, matrix.num_exact


def test_rank_0_builds_and_the_others_wait_for_it(tmp_path: Path) -> None:
    pair = side(f"{rank_file(tmp_path)}?pattern=gpt2"), side("bytes")
    first = run_ranks(2, path_and_time, tmp_path / "run", *pair)
    assert first[0] == first[1]
    assert run_ranks(2, path_and_time, tmp_path / "run", *pair) == first, "the second time it is there"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [Path(first[0][0]).name]


def test_a_named_file_is_taken_as_it_is(tmp_path: Path) -> None:
    both = side("bytes"), side("bytes")
    assert room.projection_file("w.safetensors", tmp_path, *both) == Path("w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_rank_0_cannot_build_is_the_error_of_the_job(tmp_path: Path) -> None:
    gone = Side(spec="nowhere.json", fingerprint="1" * 64, vocab_size=9, bos_id=None, eos_id=None)
    with pytest.raises(ProjectionError, match=r"cannot build the projection of this run.*nowhere.json"):
        run_ranks(2, path_and_time, tmp_path, gone, side("bytes"))
