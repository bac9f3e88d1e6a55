"""W that a training builds for itself: named by what decides it, built once, never half there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection import (
    BuildOptions,
    KnownTokenizer,
    ProjectionMatrix,
    automatic_path,
    build,
    build_if_missing,
    file,
    newest_automatic,
)
from tests.small_tokenizers import rank_file

BYTES = tokenizers.load("bytes")
TEACHER = KnownTokenizer("bytes", BYTES.fingerprint)


@pytest.fixture
def student(tmp_path: Path) -> KnownTokenizer:
    spec = f"{rank_file(tmp_path)}?pattern=gpt2"
    return KnownTokenizer(spec, tokenizers.load(spec).fingerprint)


def test_the_file_is_that_of_projection_build(student: KnownTokenizer, tmp_path: Path) -> None:
    path = build_if_missing(tmp_path / "run", student, TEACHER)
    build(tokenizers.load(student.spec), BYTES).save(tmp_path / "by_hand")
    assert path.read_bytes() == (tmp_path / "by_hand").read_bytes()
    assert list(path.parent.iterdir()) == [path]
    assert newest_automatic(path.parent, 1) == [path]


def test_what_is_there_is_not_built_again(
    student: KnownTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_if_missing(tmp_path, student, TEACHER)
    monkeypatch.setattr("nemo_xtoken.projection.automatic.build", None)
    assert build_if_missing(tmp_path, student, TEACHER) == path


def test_another_pair_other_options_or_another_schema_are_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = KnownTokenizer("a", "1" * 64), KnownTokenizer("b", "2" * 64)
    others = [BuildOptions(top_k=5), BuildOptions(beta=0.8), BuildOptions(gamma=0.2), BuildOptions(reverse_pass=True)]
    paths = [automatic_path(tmp_path, a, b), automatic_path(tmp_path, b, a)]
    paths += [automatic_path(tmp_path, a, b, options) for options in others]
    monkeypatch.setattr(file, "SCHEMA", file.SCHEMA + 1)
    paths.append(automatic_path(tmp_path, a, b))
    assert len(set(paths)) == len(paths)


def test_the_path_of_a_tokenizer_does_not_matter(tmp_path: Path) -> None:
    here, there = KnownTokenizer("here/a", "1" * 64), KnownTokenizer("there/a", "1" * 64)
    assert automatic_path(tmp_path, here, TEACHER) == automatic_path(tmp_path, there, TEACHER)


def test_options_decide_what_is_built(student: KnownTokenizer, tmp_path: Path) -> None:
    matrix = ProjectionMatrix.load(build_if_missing(tmp_path, student, TEACHER, BuildOptions(top_k=2, gamma=0.5)))
    assert matrix.indices.shape[1] == 2
    assert matrix.gamma == 0.5
    np.testing.assert_allclose(matrix.weights[~matrix.exact_rows & ~matrix.empty_rows].max(axis=1)[0], 2 / 3, rtol=1e-6)


def test_a_tokenizer_that_is_gone_or_has_changed_is_told(student: KnownTokenizer, tmp_path: Path) -> None:
    gone = KnownTokenizer("nowhere/tokenizer.json", "1" * 64)
    with pytest.raises(ProjectionError, match=r"name its file instead: nowhere/tokenizer.json: no such file"):
        build_if_missing(tmp_path, gone, TEACHER)
    with pytest.raises(ProjectionError, match=r"expected the tokenizer with fingerprint 1{12}, got one with .*changed"):
        build_if_missing(tmp_path, KnownTokenizer(student.spec, "1" * 64), TEACHER)
    assert newest_automatic(tmp_path, 1) == []


def test_a_file_of_another_pair_under_its_name_is_refused(student: KnownTokenizer, tmp_path: Path) -> None:
    path = automatic_path(tmp_path, student, TEACHER)
    build(BYTES, BYTES).save(path)
    assert build_if_missing(tmp_path, student, TEACHER) == path
    with pytest.raises(ProjectionError, match="expected the student tokenizer"):
        ProjectionMatrix.load(path).check_pair(student.fingerprint, TEACHER.fingerprint)


def test_the_newest_of_several_is_found(tmp_path: Path) -> None:
    for name, age in (("projection-a.safetensors", 2), ("projection-b.safetensors", 1), ("other.safetensors", 3)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert newest_automatic(tmp_path, 1) == [tmp_path / "projection-a.safetensors"]
