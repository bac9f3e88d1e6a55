"""Prepared data, packing and batches with several teachers."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_xtoken import tokenizers
from nemo_xtoken.cli.app import run
from nemo_xtoken.config import DataConfig, ModelConfig, TeacherConfig, TeacherLength
from nemo_xtoken.data import GlobalBatches, Manifest, PackedDataset, PreparedData, collate, inspect, prepare
from nemo_xtoken.data.indexed import IndexedWriter
from nemo_xtoken.data.packing import pack
from nemo_xtoken.data.pieces import cut_pieces
from nemo_xtoken.data.run_data import packed_dataset, teacher_numbers
from nemo_xtoken.data.teacher_names import named_values, whole_numbers
from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.types import IGNORED_LABEL
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl
from tests.small_tokenizers import rank_file

STUDENT = FakeTokenizer(3)
TEACHERS = {
    "short": FakeTokenizer(2, salt=4),
    "long": FakeTokenizer(5, salt=1, bos=False, inexact_every=9),
    "own": STUDENT,
}
TEXTS = [*random_texts(60), *random_texts(3, seed=1, shortest=900, longest=1500)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("teachers")
    source = write_jsonl(folder / "text.jsonl", TEXTS)
    prepare([source], folder / "out", STUDENT, TEACHERS)
    return PreparedData.open(folder / "out")


@pytest.mark.parametrize("number", [0, 1])
def test_each_teacher_has_the_tokens_and_chunks_that_it_has_alone(
    prepared: PreparedData, number: int, tmp_path: Path
) -> None:
    name = list(TEACHERS)[number]
    prepare([write_jsonl(tmp_path / "text.jsonl", TEXTS)], tmp_path / "out", STUDENT, TEACHERS[name])
    alone, teacher = PreparedData.open(tmp_path / "out"), prepared.teachers[number]
    for i in range(len(prepared)):
        assert teacher.tokens(i).tolist() == alone.teachers[0].tokens(i).tolist()
        assert teacher.chunk_table(i).tolist() == alone.teachers[0].chunk_table(i).tolist()
    side, only = prepared.manifest.teachers[number], alone.manifest.teachers[0]
    assert (side.name, only.name) == (name, "teacher")
    for count in ("tokens", "chunks", "one_to_one_chunks", "inexact_chunks"):
        assert getattr(side, count) == getattr(only, count) > 0 or count == "inexact_chunks"


def test_a_teacher_with_the_students_tokenizer_has_the_students_tokens(prepared: PreparedData) -> None:
    own = prepared.teachers[2]
    assert own.side.shares_student_tokens
    assert own.side.tokens == own.side.chunks == own.side.one_to_one_chunks == prepared.manifest.student.tokens
    assert sorted(path.name for path in prepared.path.iterdir()) == [
        *("chunks-2.bin", "chunks-2.idx", "chunks.bin", "chunks.idx", "documents.npy", "manifest.json"),
        *("student.bin", "student.idx", "teacher-2.bin", "teacher-2.idx", "teacher.bin", "teacher.idx"),
    ]
    for i in range(len(prepared)):
        tokens = prepared.student_tokens(i)
        assert own.tokens(i).tolist() == tokens.tolist()
        assert own.chunk_table(i).tolist() == [[t, t + 1, t, t + 1, 1] for t in range(len(tokens))]


def test_tokens_that_the_source_gives_are_not_cut_anew_for_a_teacher_with_the_same_tokenizer(tmp_path: Path) -> None:
    student = tokenizers.load(f"{rank_file(tmp_path)}?pattern=gpt2")
    eos = next(i for i, role in student.special_roles.items() if role == "eos")
    unusual = list(b"the cat")
    assert student.encode("the cat").ids.tolist() != unusual
    with IndexedWriter(tmp_path / "megatron", "int32") as writer:
        writer.add(np.array([*unusual, eos]))
    prepare([tmp_path / "megatron.bin"], tmp_path / "out", student, {"own": student, "bytes": tokenizers.load("bytes")})
    data = PreparedData.open(tmp_path / "out")
    assert data.teachers[0].tokens(0).tolist() == data.student_tokens(0).tolist()
    assert set(unusual) <= set(data.student_tokens(0).tolist())
    assert len(data.teachers[1].tokens(0)) == len(unusual) + 1


@pytest.mark.parametrize("lengths", [(64, 90, 48, 70), (64, 1000, 60, 64), (2000, 2000, 2000, 2000)])
def test_pieces_are_cut_where_a_chunk_begins_with_every_teacher(
    prepared: PreparedData, lengths: tuple[int, ...]
) -> None:
    pieces = cut_pieces(prepared, lengths[0], lengths[1:])
    starts = np.concatenate([pieces.student_start[None], pieces.teacher_start])
    ends = np.concatenate([pieces.student_end[None], pieces.teacher_end])
    assert ((ends - starts).max(1) <= np.array(lengths)).all()
    assert pieces.dropped_chunks == 0
    for i in range(len(prepared)):
        mine = np.flatnonzero(pieces.document == i)
        tables = [teacher.chunk_table(i) for teacher in prepared.teachers]
        everything = [len(prepared.student_tokens(i)), *(len(teacher.tokens(i)) for teacher in prepared.teachers)]
        assert starts[:, mine[0]].tolist() == [0] * 4
        assert ends[:, mine[-1]].tolist() == everything
        assert pieces.chunk_end[:, mine[-1]].tolist() == list(map(len, tables))
        for piece, following in pairwise(mine):
            assert (ends[:, piece] == starts[:, following]).all()
            for number, table in enumerate(tables):
                chunk = table[pieces.chunk_start[number, following]]
                assert chunk[0] == pieces.student_start[following]
                assert chunk[2] == pieces.teacher_start[number, following]
            common = set.intersection(*(set(table[1:, 0].tolist()) for table in tables))
            longer = min(cut for cut in [*common, everything[0]] if cut > ends[0, piece])
            grown = [longer - starts[0, piece]]
            for number, table in enumerate(tables):
                at = np.searchsorted(table[:, 0], longer)
                end = table[at, 2] if at < len(table) else everything[1 + number]
                grown.append(end - starts[1 + number, piece])
            assert (np.array(grown) > np.array(lengths)).any(), "a piece is as long as it can be"


def test_samples_hold_all_their_pieces_on_every_side(prepared: PreparedData) -> None:
    lengths = (150, [200, 110, 150])
    pieces = cut_pieces(prepared, *lengths)
    packing = pack(pieces, *lengths, seed=3, epoch=0)
    assert sorted(packing.order.tolist()) == list(range(len(pieces)))
    held = np.stack([pieces.teacher_lengths[:, packing[i]].sum(1) for i in range(len(packing))])
    assert (held <= np.array(lengths[1])).all()
    of_one = pack(cut_pieces(prepared, 150, [200, 2000, 2000]), 150, [200, 2000, 2000], seed=3, epoch=0)
    others = np.stack([pieces.teacher_lengths[1, of_one[i]].sum() for i in range(len(of_one))])
    assert others.max() > 110, "packing for the first teacher alone would not fit the second"


def test_the_labels_of_a_chunk_are_the_same_bytes_with_every_teacher(prepared: PreparedData) -> None:
    dataset = PackedDataset(prepared, 100, [160, 90, 100], seed=5)
    seen = [0, 0, 0]
    for i in range(dataset.epoch_samples(0)):
        sample = dataset.sample(i)
        for number, (teacher, aligned) in enumerate(zip(TEACHERS.values(), sample.teachers, strict=True)):
            for a, b, x, y in aligned.chunk_rows.tolist():
                student, theirs = sample.student.labels[a:b].tolist(), aligned.labels[x:y].tolist()
                assert student
                assert theirs
                assert IGNORED_LABEL not in student + theirs
                ours = b"".join(map(STUDENT.token_bytes, student))
                assert ours == b"".join(map(teacher.token_bytes, theirs))
                seen[number] += 1
        assert (sample.student.labels == sample.teachers[2].labels).all()
    lost = len(dataset.pieces)  # the first chunk of a piece has no predictor
    for number, side in enumerate(prepared.manifest.teachers):
        assert side.chunks - lost - dataset.pieces.dropped_chunks <= seen[number] <= side.chunks


def test_the_teachers_of_a_run_do_not_change_what_is_packed_together(prepared: PreparedData) -> None:
    """A control without a teacher, or with one of them, sees the same student sequences."""
    lengths = (100, [160, 90, 100])
    whole = PackedDataset(prepared, *lengths, seed=5)
    for teachers in ([1], [], [2, 0], [0, 0]):
        part = PackedDataset(prepared, *lengths, seed=5, teachers=teachers)
        for i in (0, 7, whole.epoch_samples(0) + 2):
            sample, same = part.sample(i), whole.sample(i)
            assert (sample.student.tokens == same.student.tokens).all()
            assert len(sample.teachers) == len(teachers)
            for number, aligned in zip(teachers, sample.teachers, strict=True):
                assert (aligned.tokens == same.teachers[number].tokens).all()
                assert (aligned.chunk_rows == same.teachers[number].chunk_rows).all()


def test_a_batch_is_one_pair_for_each_teacher_with_one_students_tensors(prepared: PreparedData) -> None:
    lengths = (100, [160, 90, 100])
    dataset = PackedDataset(prepared, *lengths, seed=5)
    for batch in (
        collate([dataset.sample(i) for i in range(3)]),
        next(GlobalBatches(dataset, 3, 6, 0, 1))[0].to("cpu"),
    ):
        assert len(batch.pairs) == 3
        for number, pair in enumerate(batch.pairs):
            assert pair.further == ()
            assert pair.teacher_tokens.shape == (3, lengths[1][number])
            for name in ("tokens", "position_ids", "labels", "loss_mask"):
                assert getattr(pair, f"student_{name}") is getattr(batch, f"student_{name}")
            alone = collate([PackedDataset(prepared, *lengths, seed=5, teachers=[number]).sample(i) for i in range(3)])
            assert alone.further == ()
            assert torch.equal(pair.teacher_labels, alone.teacher_labels)
            assert torch.equal(pair.chunks.teacher_end, alone.chunks.teacher_end)
            assert torch.equal(pair.chunks.student_end, alone.chunks.student_end)
            assert torch.equal(pair.chunks.mask, alone.chunks.mask)


def test_data_with_its_teachers_in_another_order_or_with_more_gives_the_same_pairs(tmp_path: Path) -> None:
    """As in a blend, where every part is asked for the run's teachers by name."""
    source = write_jsonl(tmp_path / "text.jsonl", TEXTS)
    for folder, names in (("a", ("short", "long")), ("b", ("own", "long", "short"))):
        prepare([source], tmp_path / folder, STUDENT, {name: TEACHERS[name] for name in names})
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    teachers = [TeacherConfig(name=name, model=model, checkpoint="t") for name in ("long", "short")]
    data = DataConfig(
        path="a",
        student_sequence_length=100,
        teacher_sequence_length=1000,
        teacher_lengths=(TeacherLength(teacher="short", sequence_length=150),),
    )
    first, second = (packed_dataset(data, teachers, str(tmp_path / folder)).sample(3) for folder in ("a", "b"))
    assert [len(sequence.tokens) for sequence in first.teachers] == [1000, 150]
    assert (first.student.tokens == second.student.tokens).all()
    for ours, theirs in zip(first.teachers, second.teachers, strict=True):
        assert (ours.tokens == theirs.tokens).all()
        assert (ours.chunk_rows == theirs.chunk_rows).all()


def test_a_single_teacher_is_found_whatever_its_name(prepared: PreparedData, tmp_path: Path) -> None:
    manifest = prepare([write_jsonl(tmp_path / "text.jsonl", ["a"])], tmp_path / "out", STUDENT, TEACHERS["long"])
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    phi, qwen = (TeacherConfig(name=name, model=model, checkpoint="t") for name in ("phi", "qwen"))
    assert teacher_numbers([phi], manifest, "out") == (0,)
    assert teacher_numbers([], prepared.manifest, "out") == ()
    for teachers, found in (([phi], prepared.manifest), ([phi, qwen], manifest)):
        with pytest.raises(DataError, match=r"out has no teacher 'phi', .* teachers\.0\.prepared_as=NAME"):
            teacher_numbers(teachers, found, "out")


def test_data_of_one_teacher_from_before_teachers_had_names_is_read(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "text.jsonl", TEXTS[:9]), tmp_path / "out"
    for teacher in (TEACHERS["long"], None):
        made = prepare([source], out, STUDENT, teacher, overwrite=True)
        content = json.loads((out / "manifest.json").read_text())
        counts = ("chunks", "one_to_one_chunks", "inexact_chunks")
        old = {name: value for name, value in content.items() if name not in ("teachers", "schema_version")}
        (side,) = content["teachers"] or [None]
        old |= {"schema_version": 2, "teacher": None, **dict.fromkeys(counts, 0)}
        if side is not None:
            old |= {name: side.pop(name) for name in counts}
            old["teacher"] = {name: side[name] for name in side if name not in ("name", "shares_student_tokens")}
        (out / "manifest.json").write_text(json.dumps(old))
        assert PreparedData.open(out).manifest == made
        assert prepare([source], out, STUDENT, teacher).reused
        for broken in ("teacher", "chunks"):
            (out / "manifest.json").write_text(json.dumps({n: v for n, v in old.items() if n != broken}))
            with pytest.raises(DataError, match="is damaged"):
                PreparedData.open(out)
        (out / "manifest.json").write_text(json.dumps({**old, "teacher": 7}))
        with pytest.raises(DataError, match="is damaged"):
            PreparedData.open(out)


def test_the_inputs_of_one_teacher_are_those_of_data_from_before(prepared: PreparedData, tmp_path: Path) -> None:
    """A run that is resumed compares them: they hold no name."""
    source = write_jsonl(tmp_path / "text.jsonl", ["a"])
    manifest = prepare([source], tmp_path / "out", STUDENT, {"x": FakeTokenizer(2)})
    assert prepare([source], tmp_path / "out", STUDENT, {"y": FakeTokenizer(2)}).reused
    sides = [["3-0-True-True-0", 100_000], ["2-0-True-True-0", 100_000]]
    assert json.loads(manifest.inputs)[:4] == [2, sides, "text", None]
    alone = prepare([source], tmp_path / "alone", STUDENT, None)
    assert json.loads(alone.inputs)[1] == [sides[0], None]
    assert [name for name, *_ in json.loads(prepared.manifest.inputs)[1][1:]] == list(TEACHERS)


def test_other_names_of_several_teachers_are_other_data(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "text.jsonl", TEXTS[:5]), tmp_path / "out"
    a, b = TEACHERS["short"], TEACHERS["long"]
    prepare([source], out, STUDENT, {"a": a, "b": b})
    assert prepare([source], out, STUDENT, {"a": a, "b": b}).reused
    for teachers in ({"a": a, "c": b}, {"b": b, "a": a}, {"a": a}):
        with pytest.raises(DataError, match="other text, tokenizers or version"):
            prepare([source], out, STUDENT, teachers)
    assert prepare([source], out, STUDENT, {"a": a}, overwrite=True).teacher_names == ("a",)
    assert not (out / "teacher-2.bin").exists()


def test_teachers_without_names_and_with_bad_ones() -> None:
    specs = ["x.tiktoken?pattern=qwen", "phi=y.tiktoken?pattern=gpt2", "./a=b/tokenizer.json"]
    assert named_values(specs, "teacher") == {
        "teacher": "x.tiktoken?pattern=qwen",
        "phi": "y.tiktoken?pattern=gpt2",
        "teacher-3": "./a=b/tokenizer.json",
    }
    with pytest.raises(ConfigError, match="two teachers are named 'phi'; give each its own name: --teacher NAME=z"):
        named_values(["phi=y", "phi=z"], "teacher")
    assert whole_numbers(["4096"]) == 4096
    assert whole_numbers(["phi=4096", "qwen=3"]) == {"phi": 4096, "qwen": 3}
    for values in (["1"], ["phi=many"], ["4", "phi=4"], ["phi="]):
        with pytest.raises(ConfigError, match="expected"):
            whole_numbers(values)


def test_one_tokenizer_twice_and_names_that_are_none_are_refused(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "text.jsonl", ["a"])
    with pytest.raises(ConfigError, match=r"'a' and 'b' have one tokenizer; .* prepared_as: a"):
        prepare([source], tmp_path / "out", STUDENT, {"a": FakeTokenizer(2), "b": FakeTokenizer(2)})
    for name in ("", "a/b", "a b"):
        with pytest.raises(ConfigError, match="expected a teacher's name of letters"):
            prepare([source], tmp_path / "out", STUDENT, {name: FakeTokenizer(2)})
    several = prepare([source], tmp_path / "out", STUDENT, {"a": FakeTokenizer(2), "b": FakeTokenizer(4)})
    with pytest.raises(DataError, match="expected data of one teacher, got several: a, b"):
        several.teacher  # noqa: B018


def test_prepare_and_inspect_take_several_teachers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_jsonl(tmp_path / "x.jsonl", TEXTS[:20]), tmp_path / "out"
    student = f"{rank_file(tmp_path)}?pattern=gpt2"
    command = ["data", "prepare", str(source), "--student", student, "--out", str(out)]
    assert run([*command, "--teacher", "bytes", "--teacher", f"own={student}"]) == 0
    printed = capsys.readouterr().out
    assert " own tokens, " in printed
    assert Manifest.load(out).teacher_names == ("teacher", "own")
    inspected = ["data", "inspect", str(out), "--student-length", "300"]
    assert run([*inspected, "--teacher-length", "teacher=400", "--teacher-length", "own=300"]) == 0
    table = capsys.readouterr().out
    assert "400" in table
    assert "own" in table
    assert run([*inspected, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["fill"]["teacher_sequence_lengths"] == [300, 300]
    assert [teacher["name"] for teacher in content["manifest"]["teachers"]] == ["teacher", "own"]
    assert run([*inspected, "--teacher-length", "qwen=400"]) == 1
    assert "holds the teachers teacher, own; expected a length for each, got some for qwen" in capsys.readouterr().err
    assert run([*inspected, "--teacher-length", "own=1"]) == 2
    statistics = inspect(out, (300, {"own": 200, "teacher": 400}))
    assert statistics.fill is not None
    assert statistics.fill.teacher_sequence_lengths == (400, 200)


def test_a_killed_run_with_two_teachers_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_xtoken.data.shards.SHARD_BYTES", 1_500)
    student = tokenizers.load(f"{rank_file(tmp_path)}?pattern=gpt2")
    teachers = {"bytes": tokenizers.load("bytes"), "own": student}
    source = [write_jsonl(tmp_path / "x.jsonl", random_texts(120))]
    prepare(source, tmp_path / "whole", student, teachers)
    out = tmp_path / "out"

    def parts() -> list[str]:
        return sorted(path.name for path in tmp_path.glob(".out.partial/*") if path.name.isdigit())

    for limit in (2, 5):
        process = os.fork()
        if not process:
            prepare(source, out, student, teachers, workers=2, on_progress=lambda *call: time.sleep(0.05))
            os._exit(0)
        while len(parts()) < limit:
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        assert not out.exists()
    kept = set(parts())
    assert len(kept) >= 5
    prepare(source, out, student, teachers)
    whole = tmp_path / "whole"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
