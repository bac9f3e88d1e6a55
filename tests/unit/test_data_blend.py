from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def naive(weights: list[float], count: int) -> list[tuple[int, int]]:
    """All samples by when they are due."""
    total = sum(map(Fraction, weights))
    due = [
        ((k + Fraction(1, 2)) / (Fraction(weight) / total), d, k)
        for d, weight in enumerate(weights)
        for k in range(count)
    ]
    return [(d, k) for _, d, k in sorted(due)[:count]]


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.permutations(range(40)))
def test_every_sample_follows_from_its_number_alone(weights: list[float], order: list[int]) -> None:
    expected = naive(weights, 40)
    for i in order:
        assert blend(weights).source(i) == expected[i], "by itself"
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
    far = blend(weights).source(10**12)
    assert far[1] == pytest.approx(shares[far[0]] * 10**12, abs=len(weights))


def test_the_order_of_a_blend_is_pinned() -> None:
    """A resumed run depends on it: a change here needs another way to resume."""
    blended = blend([0.5, 0.3, 0.2])
    assert [blended.source(i)[0] for i in range(10)] == [0, 1, 2, 0, 0, 1, 0, 2, 1, 0]


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
