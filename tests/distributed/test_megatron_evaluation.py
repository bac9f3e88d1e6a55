"""Evaluation of a trained student: losses by naive loops, greedy answers by hand, the same at tp 1 and 2."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken import tokenizers
from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.data import PreparedData
from nemo_xtoken.errors import CheckpointError, ConfigError, DataError
from nemo_xtoken.integrations.megatron import evaluate, evaluation, launch
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.generate import generate, vocab_parallel_argmax
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(120)

QUESTIONS = toy.sums(12, seed=60)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data and a trained toy student: the teacher's config is a run of its own."""
    launch(toy.student_run(toy_folder))
    return toy_folder


def load(config: RunConfig, parallel: ParallelConfig) -> evaluation.Student:
    layout = layouts.start(parallel, "cpu", 1)
    spec = PreparedData.open(config.data.path).manifest.student.spec
    return evaluation.load_student(config, layout, tokenizers.load(spec))


def naive_losses(config: RunConfig, path: str) -> tuple[list[float], list[float], list[int]]:
    """-log p of every token of every document, each document alone, and p of two digits there, from whole logits."""
    student, prepared = load(config, ParallelConfig()), PreparedData.open(path)
    numerals = [i for i in range(student.tokenizer.vocab_size) if len(student.tokenizer.token_bytes(i)) == 2]
    losses: list[float] = []
    masses: list[float] = []
    labels: list[int] = []
    for i in range(len(prepared)):
        tokens = torch.from_numpy(prepared.student_tokens(i).astype("int64"))[None]
        hidden = student.model(tokens, torch.arange(tokens.shape[1])[None], None)
        logits = (hidden @ head_weight(student.model).t())[0, :, : student.vocab_size]
        log_probs = logits.log_softmax(-1)
        for position, token in enumerate(tokens[0, 1:].tolist()):
            losses.append(-float(log_probs[position, token]))
            masses.append(float(log_probs[position, numerals].exp().sum()))
            labels.append(token)
    return losses, masses, labels


@pytest.mark.parametrize("tp_size", [1, 2])
def test_held_out_losses_are_those_of_a_naive_loop(folder: Path, tp_size: int) -> None:
    config, held_out = toy.student_run(folder), str(folder / "held_out")
    result = evaluate(config, held_out, parallel=ParallelConfig(tensor_model_parallel_size=tp_size))
    ((losses, masses, labels),) = run_ranks(1, naive_losses, config, held_out)
    tokenizer = tokenizers.load(PreparedData.open(held_out).manifest.student.spec)
    numerals = [loss for loss, i in zip(losses, labels, strict=True) if len(tokenizer.token_bytes(i)) == 2]
    rest = [loss for loss, i in zip(losses, labels, strict=True) if len(tokenizer.token_bytes(i)) != 2]
    num_bytes = int(PreparedData.open(held_out).document_bytes.sum())
    assert result["tokens"] == len(losses)
    assert result["bytes"] == num_bytes
    assert result["multi_digit_tokens"] == len(numerals) > 10
    assert result["nats_per_byte"] == pytest.approx(sum(losses) / num_bytes, rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(sum(losses) / num_bytes / math.log(2), rel=1e-5)
    assert result["loss_multi_digit"] == pytest.approx(sum(numerals) / len(numerals), rel=1e-5)
    assert result["loss_rest"] == pytest.approx(sum(rest) / len(rest), rel=1e-5)
    likely = sum(math.exp(-loss) for loss in numerals) / len(numerals)
    assert result["probability_multi_digit"] == pytest.approx(likely, rel=1e-5)
    mass = [p for p, i in zip(masses, labels, strict=True) if len(tokenizer.token_bytes(i)) == 2]
    assert likely < result["mass_multi_digit"] == pytest.approx(sum(mass) / len(mass), rel=1e-5)


def test_losses_by_class_add_up_to_all_of_them(folder: Path) -> None:
    config, held_out = toy.student_run(folder), str(folder / "held_out")
    result = evaluate(config, held_out)
    ((losses, _, labels),) = run_ranks(1, naive_losses, config, held_out)
    tokenizer = tokenizers.load(PreparedData.open(held_out).manifest.student.spec)
    digits = [loss for loss, i in zip(losses, labels, strict=True) if re.fullmatch(b"[0-9]", tokenizer.token_bytes(i))]
    assert result["loss/one_digit_numeral"] == pytest.approx(sum(digits) / len(digits), rel=1e-5)
    assert result["tokens/one_digit_numeral"] == len(digits)
    classes = [name.removeprefix("tokens/") for name in result if name.startswith("tokens/")]
    assert len(classes) > 2
    assert sum(result[f"tokens/{name}"] for name in classes) == result["tokens"]
    total = sum(result[f"tokens/{name}"] * result[f"loss/{name}"] for name in classes)
    assert total == pytest.approx(result["loss"] * result["tokens"], rel=1e-9)


def test_multi_digit_numerals_are_two_ascii_digits_or_more_with_one_space_at_most() -> None:
    class Table:
        pieces = (b"1", b"12", b" 12", b"123", b"  12", b"1a", b"\xd9\xa1\xd9\xa2", b"", b" 1")
        vocab_size = len(pieces)

        def token_bytes(self, i: int) -> bytes:
            return self.pieces[i]

    table: Any = Table()
    expected = [False, True, True, True, False, False, False, False, False, False, False]
    assert evaluation.multi_digit_ids(table, 11).tolist() == expected


def greedy(config: RunConfig, parallel: ParallelConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Batched answers, and those of a naive loop over whole logits, one prompt at a time."""
    student = load(config, parallel)
    prompts = [student.tokenizer.encode(prompt).ids.tolist() for prompt, _ in QUESTIONS]
    stops = frozenset({int(student.tokenizer.vocab_size) - 1})
    batched = generate(student.model, prompts, 5, stops, student.vocab_size)
    return batched, [naive_answer(student, prompt, 5, stops) for prompt in prompts]


def naive_answer(student: evaluation.Student, prompt: list[int], most: int, stops: frozenset[int]) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most:
        hidden = student.model(torch.tensor([tokens]), torch.arange(len(tokens))[None], None)
        logits = whole_columns(hidden[0, -1:] @ head_weight(student.model).t())[0, : student.vocab_size]
        following = int(logits.argmax())
        if following in stops:
            break
        tokens.append(following)
    return tokens[len(prompt) :]


def whole_columns(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts, -1)


def test_batched_greedy_answers_are_those_of_a_naive_loop(folder: Path) -> None:
    config = toy.student_run(folder)
    ((batched, naive),) = run_ranks(1, greedy, config, ParallelConfig())
    assert batched == naive
    assert any(answer for answer in batched)
    for result in run_ranks(2, greedy, config, ParallelConfig(tensor_model_parallel_size=2)):
        assert result == (batched, naive)


def argmax_at_ties() -> list[int]:
    group = dist.group.WORLD
    assert group is not None
    head = torch.zeros(4, 2)
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    if group.rank() == 1:
        head[2, 1] = 1.0
        head[3, 1] = 5.0  # id 7, which is padding
    return vocab_parallel_argmax(hidden, head, group, vocab_size=7).tolist()


def test_the_argmax_takes_the_lowest_id_at_a_tie_and_never_padding() -> None:
    assert run_ranks(2, argmax_at_ties) == [[0, 6], [0, 6]]


def test_exact_answers_are_counted_as_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers.load(toy.student_spec(folder))

    def answers(model: object, prompts: list[list[int]], *_: object) -> list[list[int]]:
        texts = {"1+2=": "3", "20+2=": "22", "4+4=": " 8 .", "0+1=": "1\n7"}
        return [tokenizer.encode(texts[tokenizer.decode(prompt)]).ids.tolist() for prompt in prompts]

    monkeypatch.setattr(evaluation, "generate", answers)
    student = evaluation.Student(model=None, tokenizer=tokenizer, vocab_size=323, config=toy.student_run(folder))  # type: ignore[arg-type]
    questions = [("1+2=", "3"), ("20+2=", "22"), ("4+4=", "8"), ("0+1=", "1")]
    assert evaluation.exact_answers(student, questions, 4) == [True, True, False, True]


def test_evaluation_with_questions_from_a_run_directory(folder: Path) -> None:
    result = evaluate(folder / "student_run", folder / "held_out", QUESTIONS, max_new_tokens=3)
    assert 0 <= result["exact_answers"] <= 1
    assert result["questions"] == 12


def test_wrong_inputs_of_an_evaluation_are_one_clear_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected the directory of a training run"):
        evaluate(folder / "nowhere", folder / "held_out")
    with pytest.raises(DataError, match="was prepared with bytes, but the run was trained with"):
        evaluate(folder / "student_run", folder / "teacher_alone")
    with pytest.raises(CheckpointError, match="evaluation: expected a run directory with a complete checkpoint"):
        evaluate(toy.student_run(folder, "untrained"), folder / "held_out")
