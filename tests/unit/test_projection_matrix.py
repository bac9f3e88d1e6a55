"""The matrix checks itself, and its file says when it is not to be trusted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection import ProjectionMatrix, file
from nemo_xtoken.projection.piece_table import PieceTable
from tests.problems import piece_table

INDICES = np.array([[2, 0, 1], [3, -1, -1], [-1, -1, -1]], np.int32)
WEIGHTS = np.array([[0.7, 0.2, 0.1], [1, 0, 0], [0, 0, 0]], np.float32)


@pytest.fixture
def matrix() -> ProjectionMatrix:
    return ProjectionMatrix(
        INDICES,
        WEIGHTS,
        teacher_vocab_size=6,
        student_fingerprint="5" * 64,
        teacher_fingerprint="7" * 64,
        student_spec="student.json",
        teacher_spec="teacher.json",
        exact=np.array([False, True, False]),
        beta=0.9,
        gamma=0.1,
        reverse_pass=True,
    )


@pytest.fixture
def saved(matrix: ProjectionMatrix, tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    matrix.save(path)
    return path


def test_sizes_and_counts(matrix: ProjectionMatrix) -> None:
    assert (matrix.student_vocab_size, matrix.teacher_vocab_size) == (3, 6)
    assert (matrix.num_exact, matrix.num_empty) == (1, 1)


def test_the_teacher_vocabulary_defaults_to_what_the_indices_need() -> None:
    assert ProjectionMatrix(INDICES, WEIGHTS).teacher_vocab_size == 4


def test_dense_w_holds_each_weight_at_its_place(matrix: ProjectionMatrix) -> None:
    expected = [[0.2, 0.1, 0.7, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6]
    np.testing.assert_array_equal(matrix.to_dense(), np.array(expected, np.float32))


def changed(array: NDArray[Any], place: tuple[int, int], value: float) -> NDArray[Any]:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"indices": INDICES.astype(np.int64)}, "int32, got .* int64"),
        ({"weights": WEIGHTS.astype(np.float64)}, "float32, got .* float64"),
        ({"indices": INDICES[0]}, r"\[V_S, K > 0\]"),
        ({"indices": INDICES[:, :0], "weights": WEIGHTS[:, :0]}, r"\[V_S, K > 0\]"),
        ({"weights": WEIGHTS[:2]}, "one shape"),
        ({"weights": changed(WEIGHTS, (0, 0), 0.6)}, "row 0 sums to 0.9"),
        ({"weights": changed(changed(WEIGHTS, (0, 0), 0.9), (0, 1), -0.0001)}, "not negative"),
        ({"weights": changed(WEIGHTS, (0, 0), np.nan)}, "must be numbers"),
        ({"weights": changed(WEIGHTS, (2, 0), 1)}, "0 where the index is -1"),
        ({"weights": changed(WEIGHTS, (1, 0), 0)}, "row 1 sums to 0"),
        ({"indices": changed(INDICES, (0, 0), 6)}, "below teacher_vocab_size 6"),
        ({"indices": changed(INDICES, (0, 0), -2)}, "must be -1 or below"),
        ({"exact": np.array([True, True, False])}, "exact row"),
        ({"exact": np.array([False, True])}, "exact must be"),
    ],
)
def test_arrays_that_are_no_projection_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProjectionError, match=message):
        ProjectionMatrix(**{"indices": INDICES, "weights": WEIGHTS, "teacher_vocab_size": 6, **fields})


def test_its_own_pair_is_accepted(matrix: ProjectionMatrix) -> None:
    matrix.check_pair("5" * 64, "7" * 64)


@pytest.mark.parametrize(
    ("pair", "words", "absent"),
    [
        (("6" * 64, "7" * 64), ["student", "666666666666", "student.json", "555555555555"], "teacher.json"),
        (("5" * 64, "8" * 64), ["teacher", "888888888888", "teacher.json", "777777777777"], "student.json"),
        (("6" * 64, "8" * 64), ["student.json", "teacher.json"], "swapped"),
        (("7" * 64, "5" * 64), ["swapped"], "student.json"),
    ],
)
def test_another_pair_is_refused_by_the_side_that_differs(
    matrix: ProjectionMatrix, pair: tuple[str, str], words: list[str], absent: str
) -> None:
    with pytest.raises(ProjectionError) as caught:
        matrix.check_pair(*pair)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert absent not in message
    assert "nemo-xtoken projection build" in message
    assert "\n" not in message


def test_a_matrix_of_no_pair_fits_no_run() -> None:
    with pytest.raises(ProjectionError, match="unknown"):
        ProjectionMatrix(INDICES, WEIGHTS).check_pair("5" * 64, "7" * 64)


def test_a_saved_matrix_comes_back_whole(matrix: ProjectionMatrix, saved: Path) -> None:
    loaded = ProjectionMatrix.load(saved)
    for name in ("indices", "weights", "exact"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(matrix, name), strict=True)
    for name in file.DESCRIPTION:
        assert getattr(loaded, name) == getattr(matrix, name)


def test_saving_again_gives_the_same_bytes_and_leaves_no_other_file(matrix: ProjectionMatrix, saved: Path) -> None:
    before = saved.read_bytes()
    matrix.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_who_has_the_old_file_open_goes_on_reading_it(saved: Path) -> None:
    before = saved.read_bytes()
    with saved.open("rb") as reader:
        ProjectionMatrix(INDICES[1:], WEIGHTS[1:]).save(saved)
        assert reader.read() == before
    assert ProjectionMatrix.load(saved).student_vocab_size == 2


def test_a_failed_write_leaves_the_old_file(
    matrix: ProjectionMatrix, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(ProjectionError, match="No space left"):
        matrix.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_metadata_names_the_pair_and_the_options(saved: Path) -> None:
    with safe_open(saved, framework="np") as stream:
        header = json.loads(stream.metadata()[file.KEY])
    assert (header["schema"], header["top_k"], header["beta"], header["gamma"]) == (4, 3, 0.9, 0.1)
    assert header["reverse_pass"] is True
    assert (header["student_spec"], header["teacher_fingerprint"]) == ("student.json", "7" * 64)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ProjectionError, match=r"no projection file at .*nowhere"):
        ProjectionMatrix.load(tmp_path / "nowhere")


def test_pieces_are_kept_in_the_file_and_what_an_older_version_wrote_has_none(
    matrix: ProjectionMatrix, saved: Path
) -> None:
    assert ProjectionMatrix.load(saved).pieces is None
    rewrite(saved, schema=2)
    assert ProjectionMatrix.load(saved).pieces is None
    table, teacher_table = piece_table([[2, 0, 1], [3], []]), piece_table([[1], [], [0], [1], [2, 2], []])
    replace(matrix, pieces=table).save(saved)
    rewrite(saved, (*file.TENSORS, *file.PIECES), schema=3)
    assert ProjectionMatrix.load(saved).teacher_pieces is None
    assert _listed(ProjectionMatrix.load(saved).pieces) == _listed(table)
    replace(matrix, pieces=table, teacher_pieces=teacher_table).save(saved)
    loaded = ProjectionMatrix.load(saved)
    assert (_listed(loaded.pieces), _listed(loaded.teacher_pieces)) == (_listed(table), _listed(teacher_table))


def _listed(table: PieceTable | None) -> list[list[int]]:
    assert table is not None
    return [table.of_token(token) for token in range(len(table.ends))]


def test_pieces_that_do_not_fit_are_refused(matrix: ProjectionMatrix) -> None:
    with pytest.raises(ProjectionError, match="pieces must be of 3 tokens and below 6, got 2 tokens, ids up to 0"):
        replace(matrix, pieces=piece_table([[0], [0]]))
    with pytest.raises(ProjectionError, match="got 3 tokens, ids up to 6"):
        replace(matrix, pieces=piece_table([[6], [0], []]))
    with pytest.raises(ProjectionError, match="of 6 tokens and below 3, got 1 tokens, ids up to 3"):
        replace(matrix, teacher_pieces=piece_table([[3]]))
    with pytest.raises(ProjectionError, match="must end in order, at 2, got 1"):
        PieceTable(np.array([0, 1], np.int32), np.array([1, 1], np.int32))
    with pytest.raises(ProjectionError, match="two rows of int32, got int64 and int32"):
        PieceTable(np.array([0]), np.array([1], np.int32))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ProjectionError, match="damaged"):
        ProjectionMatrix.load(saved)


def test_a_changed_byte_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    place = bytes(content).rindex(INDICES.tobytes())
    content[place] = 3
    saved.write_bytes(content)
    with pytest.raises(ProjectionError, match="checksum"):
        ProjectionMatrix.load(saved)


def rewrite(path: Path, tensors: tuple[str, ...] = file.TENSORS, **header: Any) -> None:
    """Write the file once more with other metadata; None takes an entry out."""
    with safe_open(path, framework="np") as stream:
        arrays = {name: stream.get_tensor(name) for name in tensors}
        merged = {**json.loads(stream.metadata()[file.KEY]), **header}
    kept = {name: value for name, value in merged.items() if value is not None}
    save_file(arrays, path, {file.KEY: json.dumps(kept)})


@pytest.mark.parametrize(("schema", "age"), [(1, "an older"), (5, "a newer")])
def test_another_schema_is_refused_and_named(saved: Path, schema: int, age: str) -> None:
    rewrite(saved, schema=schema)
    with pytest.raises(ProjectionError, match=f"w.safetensors has schema {schema} of {age} version, expected 4; build"):
        ProjectionMatrix.load(saved)


@pytest.mark.parametrize("name", ["student_fingerprint", "schema"])
def test_missing_metadata_is_refused(name: str, saved: Path) -> None:
    changes: dict[str, Any] = {name: None}
    rewrite(saved, **changes)
    with pytest.raises(ProjectionError, match=f"lacks {name}"):
        ProjectionMatrix.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schema", "2", "schema in its metadata is str, not int"),
        ("schema", 4.0, "schema in its metadata is float, not int"),
        ("teacher_vocab_size", "many", "teacher_vocab_size in its metadata is str, not int"),
        ("teacher_vocab_size", True, "teacher_vocab_size in its metadata is bool, not int"),
        ("student_spec", [], "student_spec in its metadata is list, not str"),
        ("beta", "x", "beta in its metadata is str, not float or int or NoneType"),
        ("sha256", 1, "sha256 in its metadata is int, not str"),
    ],
)
def test_metadata_of_another_type_is_refused(name: str, value: Any, message: str, saved: Path) -> None:
    changes: dict[str, Any] = {name: value}
    rewrite(saved, **changes)
    with pytest.raises(ProjectionError, match=f"w.safetensors is damaged: {message}; build it again"):
        ProjectionMatrix.load(saved)


@pytest.mark.parametrize(
    ("metadata", "message"), [("[1]", "not a JSON object"), ("{", "not JSON"), ("[" * 10**5, "not JSON")]
)
def test_metadata_that_is_no_object_is_refused(metadata: str, message: str, saved: Path) -> None:
    save_file({"weights": WEIGHTS}, saved, {file.KEY: metadata})
    with pytest.raises(ProjectionError, match=f"w.safetensors is damaged: its metadata is {message}; build it again"):
        ProjectionMatrix.load(saved)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_torch_file({"weights": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    with pytest.raises(ProjectionError, match="not a projection file"):
        ProjectionMatrix.load(tmp_path / "model.safetensors")


def test_a_whole_file_with_wrong_rows_names_the_file(matrix: ProjectionMatrix, tmp_path: Path) -> None:
    arrays = {"indices": INDICES, "weights": WEIGHTS * np.float32(0.5), "exact": np.zeros(3, np.bool_)}
    file.write(tmp_path / "w", arrays, {name: getattr(matrix, name) for name in file.DESCRIPTION})
    with pytest.raises(ProjectionError, match="w: rows of a projection must sum to 1"):
        ProjectionMatrix.load(tmp_path / "w")
