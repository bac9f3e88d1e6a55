from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.blended_dataset import BlendedDataset as MegatronBlend
from megatron.core.datasets.utils import Split

from nemo_xtoken.config import BlendPart, DataConfig
from nemo_xtoken.data import BlendedDataset, GlobalBatches, PackedDataset, PreparedData, prepare
from nemo_xtoken.errors import ConfigError
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl


class Numbered(PackedDataset):
    """Samples that are never asked for."""

    def __init__(self) -> None:
        pass


def config(path: str = "", blend: tuple[BlendPart, ...] = ()) -> DataConfig:
    return DataConfig(path=path, blend=blend, student_sequence_length=8, teacher_sequence_length=8)


def test_a_config_names_one_directory_or_a_blend() -> None:
    part = BlendPart(path="a", weight=2.0)
    assert config("b").parts == (BlendPart(path="b"),)
    assert config(blend=(part, part)).parts == (part, part)
    with pytest.raises(ConfigError, match=r"expected data\.path or data\.blend, got neither"):
        config()
    with pytest.raises(ConfigError, match=r"expected data\.path or data\.blend, got both"):
        config("b", (part,))
    with pytest.raises(ConfigError, match="weight of a must be positive"):
        BlendPart(path="a", weight=0.0)


def blend(weights: list[float]) -> BlendedDataset:
    return BlendedDataset([Numbered() for _ in weights], weights)


def megatron_order(weights: list[float], count: int) -> list[tuple[int, int]]:
    """What Megatron's own blend of as many endless datasets takes."""
    parts = [Endless() for _ in weights]
    blended = MegatronBlend(parts, weights, count, SimpleNamespace(path_to_cache=None, defer_npy_index_mmap=False))  # type: ignore[arg-type]
    return list(zip(blended.dataset_index.tolist(), blended.dataset_sample_index.tolist(), strict=True))


class Endless:
    """As much of a Megatron dataset as a blend of them asks for."""

    split = index_split = Split.train
    unique_identifiers: ClassVar[dict[str, str]] = {}

    def __len__(self) -> int:
        return 1 << 40


def due_first(weights: list[float], count: int) -> list[tuple[int, int]]:
    """Another order with the same shares: sample k of a dataset is due at (k + 1/2) / weight."""
    due = [((k + 0.5) / weight, d, k) for d, weight in enumerate(weights) for k in range(count)]
    return [(d, k) for _, d, k in sorted(due)[:count]]


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.integers(4080, 4120))
def test_the_order_is_that_of_megatrons_own_blend(weights: list[float], count: int) -> None:
    blended = blend(weights)
    assert [blended.source(i) for i in range(count)] == megatron_order(weights, count)


def test_an_order_with_the_same_shares_is_not_megatrons() -> None:
    assert due_first([0.5, 0.3, 0.2], 40) != megatron_order([0.5, 0.3, 0.2], 40)


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.lists(st.integers(0, 10_000), max_size=6))
def test_every_sample_follows_from_its_number_alone(weights: list[float], order: list[int]) -> None:
    expected = megatron_order(weights, 10_001)
    assert [blend(weights).source(i) for i in order[:1]] == [expected[i] for i in order[:1]], "by itself"
    asked = blend(weights)
    assert [asked.source(i) for i in order] == [expected[i] for i in order], "after others"


@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.2, 0.1], [3, 1, 1, 1, 1e-3], [1, 1, 1]])
def test_shares_are_the_weights_after_any_number_of_samples(weights: list[float]) -> None:
    blended, shares = blend(weights), np.array(weights) / sum(weights)
    counts = np.zeros(len(weights))
    for i in range(3_000):
        dataset, k = blended.source(i)
        assert k == counts[dataset], "each in its own order, none left out"
        counts[dataset] += 1
        assert (abs(counts - shares * (i + 1)) < max(len(weights), 1.001)).all()


def test_the_order_of_a_blend_is_pinned() -> None:
    """A resumed run depends on it: a change here needs another way to resume."""
    blended = blend([0.5, 0.3, 0.2])
    assert [blended.source(i)[0] for i in range(10)] == [0, 1, 2, 0, 1, 0, 2, 0, 1, 0]


def datasets(folder: Path) -> list[PackedDataset]:
    found: list[PackedDataset] = []
    for i, count in enumerate((30, 8)):
        source = write_jsonl(folder / f"{i}.jsonl", random_texts(count, seed=i))
        prepare([source], folder / str(i), FakeTokenizer(), FakeTokenizer(2), overwrite=True)
        found.append(PackedDataset(PreparedData.open(folder / str(i)), 96, 96, seed=4))
    return found


def test_global_batches_of_a_blend_do_not_depend_on_the_layout_and_resume(tmp_path: Path) -> None:
    parts = datasets(tmp_path)

    def steps(dp_size: int, first: int, last: int) -> list[list[list[int]]]:
        ranks = [
            GlobalBatches(BlendedDataset(parts, [2, 1]), 1, 4, rank, dp_size, consumed_samples=first * 4)
            for rank in range(dp_size)
        ]
        return [
            [batch.student_tokens[0].tolist() for micro in zip(*map(next, ranks), strict=True) for batch in micro]
            for _ in range(first, last)
        ]

    whole = steps(1, 0, 12)
    assert whole == steps(2, 0, 12) == steps(4, 0, 12)
    assert whole[7:] == steps(2, 7, 12)
    blended = BlendedDataset(parts, [2, 1])
    for i, tokens in enumerate(tokens for step in whole for tokens in step):
        dataset, k = blended.source(i)
        assert tokens == parts[dataset].sample(k).student.tokens.tolist()
    assert parts[1].epoch_samples(0) < 16, "the small one is seen more than once"


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 0.0], [1.0, -1.0]])
def test_weights_that_make_no_blend_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected a positive weight for each of 2 datasets"):
        BlendedDataset([Numbered(), Numbered()], weights)
