"""Training that reads several prepared datasets, mixed by weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import BlendPart, RunConfig
from nemo_xtoken.errors import DataError
from nemo_xtoken.integrations.megatron import launch
from tests.distributed import toy

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    return folder


def run(folder: Path, name: str, *parts: tuple[str, float]) -> RunConfig:
    """A run without a teacher on a blend; without parts, on the pair's data."""
    train = replace(toy.TRAIN, steps=3, checkpoint_interval=0, validation_interval=0)
    config = replace(toy.student_run(folder, name, train=train), teachers=())
    if not parts:
        return config
    blend = tuple(BlendPart(path=str(folder / part), weight=weight) for part, weight in parts)
    return replace(config, data=replace(config.data, path="", blend=blend))


def test_a_blend_of_one_is_that_one_and_another_part_changes_what_is_learnt(folder: Path) -> None:
    alone, one, two = (
        run(folder, "alone"),
        run(folder, "one", ("pair", 3)),
        run(folder, "two", ("pair", 2), ("held_out", 1)),
    )
    for config in (alone, one, two):
        launch(config)
    assert toy.metrics(one) == toy.metrics(alone)
    assert toy.metrics(two) != toy.metrics(alone)


def test_all_parts_of_a_blend_have_the_same_tokenizers(folder: Path) -> None:
    with pytest.raises(DataError, match=r"teacher_alone was not prepared with the student tokenizer of .*pair"):
        launch(run(folder, "mixed", ("pair", 1), ("teacher_alone", 1)))
