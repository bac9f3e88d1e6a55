"""`data prepare` of what the datasets library itself writes; here because it belongs to this suite's environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets  # pyright: ignore[reportMissingImports]
import pytest

from nemo_xtoken.data import Manifest, PreparedData, prepare
from nemo_xtoken.errors import DataError
from tests.fake_tokenizers import FakeTokenizer, random_texts

TEXTS = [*random_texts(300), "line\u2028 ends\r\n", "\x00 e\u0301 \U0001f469\u200d\U0001f680"]


def decoded(source: Path, out: Path, key: str = "text") -> list[str]:
    """What the prepared data of a source says, document by document."""
    tokenizer = FakeTokenizer()
    prepare([source], out, tokenizer, None, text_key=key)
    data = PreparedData.open(out)
    return [tokenizer.decode(data.student_tokens(i)) for i in range(len(data))]


def rows(count: int = len(TEXTS)) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"id": list(range(count)), "text": TEXTS[:count]})


def expected(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if text]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_saved_dataset_in_one_file_and_in_several(tmp_path: Path, num_shards: int) -> None:
    rows().save_to_disk(tmp_path / "saved", num_shards=num_shards)
    assert len(list((tmp_path / "saved").glob("*.arrow"))) == num_shards
    assert decoded(tmp_path / "saved", tmp_path / "out") == expected(TEXTS)
    assert len(Manifest.load(tmp_path / "out").sources) == num_shards


def test_rows_that_were_selected_and_shuffled_come_in_their_new_order(tmp_path: Path) -> None:
    chosen = rows().filter(lambda row: row["id"] % 3 == 0).shuffle(seed=1)
    chosen.save_to_disk(tmp_path / "saved")
    assert decoded(tmp_path / "saved", tmp_path / "out") == expected(list(chosen["text"]))


@pytest.mark.parametrize("kind", [datasets.Value("large_string"), datasets.Value("binary")])
def test_texts_of_other_column_types(tmp_path: Path, kind: datasets.Value) -> None:
    typed = rows().cast(datasets.Features({"id": datasets.Value("int64"), "text": kind}))
    typed.save_to_disk(tmp_path / "saved")
    assert decoded(tmp_path / "saved", tmp_path / "out") == expected(TEXTS)


def test_splits_are_asked_for_by_name(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": rows(), "test": rows(20)})
    splits.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="holds the splits test, train of a Hugging Face dataset; name one"):
        prepare([tmp_path / "saved"], tmp_path / "out", FakeTokenizer(), None)
    assert decoded(tmp_path / "saved" / "test", tmp_path / "out") == expected(TEXTS[:20])


def test_the_tables_and_lines_that_it_exports(tmp_path: Path) -> None:
    rows().to_parquet(tmp_path / "x.parquet")
    rows().to_json(tmp_path / "x.jsonl")
    for name in ("x.parquet", "x.jsonl"):
        assert decoded(tmp_path / name, tmp_path / f"out of {name}") == expected(TEXTS)


def test_the_arrow_file_of_its_cache(tmp_path: Path) -> None:
    rows().to_parquet(tmp_path / "x.parquet")
    cached = datasets.load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    [file] = cached["train"].cache_files
    assert decoded(Path(file["filename"]), tmp_path / "out") == expected(TEXTS)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r'has no column "body" \(its columns: id, text\)'):
        prepare([tmp_path / "saved"], tmp_path / "out", FakeTokenizer(), None, text_key="body")
