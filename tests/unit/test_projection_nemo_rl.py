"""NeMo-RL's projection files, read with care and written so that they mean the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection import build, nemo_rl
from nemo_xtoken.projection.nemo_rl import MAX_PADDED_ROWS
from tests.longest_match import DIGITS, LongestMatch, entries

STUDENT = LongestMatch([b"201", b"11", b"0", b"1", b""], {4: "bos"}, spec="student")
TEACHER = LongestMatch([*DIGITS, b"x"], spec="teacher")
INDICES = torch.tensor([[2, 0, 1], [1, -1, -1], [0, 3, 4], [1, -1, -1], [5, 6, 7], [8, 9, 10]])
LIKELIHOODS = torch.tensor(
    [[0.9, 0.09, 0.009], [0.5, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
)


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def top_k_file(path: Path, **changes: Any) -> Path:
    """A file as NeMo-RL writes it, one row longer than the student's ids."""
    content = {"indices": INDICES, "likelihoods": LIKELIHOODS, "student_model_id": "s", "enable_scale_trick": True}
    return save(path, {**content, **changes})


def test_the_top_k_file_becomes_normal_rows(tmp_path: Path) -> None:
    matrix = nemo_rl.read(top_k_file(tmp_path / "w.pt"), STUDENT, TEACHER, top_k=4)
    assert entries(matrix, 0) == pytest.approx({2: 0.9 / 0.999, 0: 0.09 / 0.999, 1: 0.009 / 0.999}, rel=1e-6)
    assert [entries(matrix, row) for row in range(1, 5)] == [{1: 1.0}, {0: 1.0}, {1: 1.0}, {}]
    assert matrix.exact_rows.tolist() == [False, False, True, True, False]
    assert (matrix.student_vocab_size, matrix.teacher_vocab_size) == (5, 11)
    assert (matrix.beta, matrix.gamma) == (None, None)
    matrix.check_pair(STUDENT.fingerprint, TEACHER.fingerprint)


def test_brain_floats_are_read(tmp_path: Path) -> None:
    path = top_k_file(tmp_path / "w.pt", likelihoods=LIKELIHOODS.bfloat16(), indices=INDICES.int())
    assert entries(nemo_rl.read(path, STUDENT, TEACHER, 4), 2) == {0: 1.0}


def test_weights_that_were_learnt_are_read(tmp_path: Path) -> None:
    path = top_k_file(tmp_path / "w.pt", likelihoods=torch.nn.Parameter(LIKELIHOODS))
    assert entries(nemo_rl.read(path, STUDENT, TEACHER, 4), 2) == {0: 1.0}


def test_counts_become_shares_and_the_heaviest_stay(tmp_path: Path) -> None:
    counts = {(0, 2): 6.0, (0, 0): 3.0, (0, 1): 1.0, (2, 0): 2, (3, 1): 0.5, (3, 7): 0.0}
    path = save(tmp_path / "w.pt", counts)
    matrix = nemo_rl.read(path, STUDENT, TEACHER, top_k=2)
    assert entries(matrix, 0) == pytest.approx({2: 2 / 3, 0: 1 / 3}, rel=1e-6)
    assert [entries(matrix, row) for row in range(1, 5)] == [{}, {0: 1.0}, {1: 1.0}, {}]


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    matrix = build(STUDENT, TEACHER)
    nemo_rl.write(matrix, tmp_path / "w.pt")
    again = nemo_rl.read(tmp_path / "w.pt", STUDENT, TEACHER, top_k=4)
    np.testing.assert_array_equal(again.indices, matrix.indices)
    np.testing.assert_allclose(again.weights, matrix.weights, rtol=1e-6)
    np.testing.assert_array_equal(again.exact_rows, matrix.exact_rows)
    assert list(tmp_path.iterdir()) == [tmp_path / "w.pt"]


def test_the_written_file_has_the_keys_and_types_of_nemo_rl(tmp_path: Path) -> None:
    nemo_rl.write(build(STUDENT, TEACHER, top_k=1), tmp_path / "w.pt")
    content = torch.load(tmp_path / "w.pt", weights_only=True)
    assert content["indices"].dtype == torch.int64
    assert content["likelihoods"].dtype == torch.float32
    assert content["indices"].shape == content["likelihoods"].shape == (5, 2)
    exact = (content["likelihoods"].max(dim=1).values == 1) & (content["indices"][:, 1] == -1)
    assert exact[2:4].all(), "their rule for an exact pair"
    assert (content["student_model_id"], content["enable_scale_trick"]) == ("student", False)


class Evil:
    """Would run a command of its own when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_a_file_that_holds_code_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"indices": INDICES, "likelihoods": Evil()})
    with pytest.raises(ProjectionError, match="more than tensors, numbers and names, which is not read"):
        nemo_rl.read(path, STUDENT, TEACHER, 4)


@pytest.mark.parametrize("content", [INDICES, {}, {"weights": INDICES}, {(0, 1, 2): 1.0}, [1]])
def test_another_file_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ProjectionError, match="is not a projection file of NeMo-RL: expected indices"):
        nemo_rl.read(save(tmp_path / "w.pt", content), STUDENT, TEACHER, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihoods": LIKELIHOODS[:, :2]}, "one shape"),
        ({"indices": INDICES[0]}, "one shape"),
        ({"likelihoods": [1.0]}, "one shape"),
        ({"likelihoods": -LIKELIHOODS}, "not negative"),
        ({"likelihoods": LIKELIHOODS * float("nan")}, "must be numbers"),
        ({"likelihoods": LIKELIHOODS / 0}, "must be numbers"),
        ({"likelihoods": LIKELIHOODS.double() * 1e300}, "not above 3.4e"),
        ({"likelihoods": LIKELIHOODS * 0}, "expected weights, got none"),
        ({"indices": INDICES[:, :0], "likelihoods": LIKELIHOODS[:, :0]}, r"K > 0.*got \[6, 0\] int64"),
        ({"likelihoods": LIKELIHOODS.to_sparse()}, r"dense tensors .*got .* and \[6, 3\] float32 \(sparse_coo, cpu\)"),
        ({"likelihoods": LIKELIHOODS.to("meta")}, r"dense tensors .*\(strided, meta\); save it again"),
        ({"likelihoods": LIKELIHOODS.to(torch.complex64)}, "real numbers, got .* complex64"),
        ({"indices": INDICES.double()}, "indices of integers .*got .* float64"),
        ({"indices": INDICES + 2**62}, "fit the teacher tokenizer"),
        (
            {"indices": INDICES[:4], "likelihoods": LIKELIHOODS[:4]},
            "fit the student tokenizer .* 5 ids.* got 4",
        ),
        (
            {
                "indices": INDICES[:1].expand(3000, 3),
                "likelihoods": LIKELIHOODS[:1].expand(3000, 3),
            },
            "fit the student tokenizer student: expected 5 ids, and padding at most, got 3,000",
        ),
        ({"indices": INDICES * 2000}, "fit the teacher tokenizer teacher: expected 11 ids.* got 20,001"),
        ({"indices": INDICES.flip(0)}, "of 2 tokens that both have, only 0 meet"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectionError, match=message):
        nemo_rl.read(top_k_file(tmp_path / "w.pt", **changes), STUDENT, TEACHER, 4)


@pytest.mark.parametrize(
    "counts",
    [
        {(0, -2): 1.0},
        {("a", "b"): 1.0},
        {(0, 1): "x"},
        {(0, 1): "1"},
        {(0, 1): 10**400},
        {(0, 1): 1e300},
        {(0, 1): 0.0},
        {(1.5, 2): 1},
        {(2**70, 1): 1},
        {(MAX_PADDED_ROWS + 6, 1): 1.0},
    ],
)
def test_wrong_counts_are_refused(counts: dict[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ProjectionError, match=r"w\.pt"):
        nemo_rl.read(save(tmp_path / "w.pt", counts), STUDENT, TEACHER, 4)


def test_weight_on_padded_teacher_ids_is_left_out(tmp_path: Path) -> None:
    indices = INDICES.clone()
    indices[2, 1] = 15
    likelihoods = LIKELIHOODS.clone()
    likelihoods[2, 1] = 0.2
    path = top_k_file(tmp_path / "w.pt", indices=indices, likelihoods=likelihoods)
    assert entries(nemo_rl.read(path, STUDENT, TEACHER, 4), 2) == {0: 1.0}


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04"])
def test_a_damaged_or_missing_file_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(ProjectionError, match="no projection file at"):
        nemo_rl.read(path, STUDENT, TEACHER, 4)
    path.write_bytes(content)
    with pytest.raises(ProjectionError, match="damaged, or holds more"):
        nemo_rl.read(path, STUDENT, TEACHER, 4)
