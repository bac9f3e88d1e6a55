"""How well a trained student predicts held-out text: per byte, on multi-digit numerals, and as exact answers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_xtoken import tokenizers
from nemo_xtoken.config import RunConfig
from nemo_xtoken.data.batches import sequential_batches
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import teacher_lengths
from nemo_xtoken.errors import DataError
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.attention_mask import document_mask
from nemo_xtoken.integrations.megatron.generate import generate
from nemo_xtoken.integrations.megatron.head_tap import head_options, head_weight, rows
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds, load_model
from nemo_xtoken.integrations.megatron.models import build_gpt
from nemo_xtoken.losses.cross_entropy import cross_entropy_per_row
from nemo_xtoken.losses.vocabulary import log_softmax
from nemo_xtoken.parallel.logits import logits_of
from nemo_xtoken.parallel.vocabulary import RowRange, vocabulary_of
from nemo_xtoken.projection import TokenClass, token_class
from nemo_xtoken.tokenizers.protocol import Tokenizer, role_id
from nemo_xtoken.types import DistillBatch

MULTI_DIGIT = re.compile(rb" ?[0-9]{2,}")
BLOCK_ROWS = 512
ANSWERS_AT_A_TIME = 16

Question = tuple[str, str]
"""A prompt, and the answer that should follow it."""


@dataclass(frozen=True)
class Student:
    """A trained model, ready to be evaluated."""

    model: GPTModel
    tokenizer: Tokenizer
    vocab_size: int
    config: RunConfig


def run_rank(
    config: RunConfig, prepared_path: str, questions: Sequence[Question], max_new_tokens: int, init_method: str
) -> dict[str, float]:
    """Evaluate as the rank that the environment names: `evaluate.evaluate` says what. Each rank gets the result."""
    prepared = PreparedData.open(prepared_path)
    tokenizer = _load_tokenizer(config, prepared)
    layout = layouts.start(config.parallel, config.device, config.train.seed, init_method)
    try:
        student = load_student(config, layout, tokenizer)
        result = held_out_loss(student, prepared)
        if questions:
            right = exact_answers(student, questions, max_new_tokens)
            result |= {"exact_answers": sum(right) / len(right), "questions": float(len(right))}
        return result
    finally:
        layouts.stop()


def load_student(config: RunConfig, layout: Layout, tokenizer: Tokenizer) -> Student:
    """The model of a run's latest complete checkpoint, in eval mode. Raises CheckpointError where there is none."""
    vocab_size = config.student.vocab_size or tokenizer.vocab_size
    model = build_gpt(
        config.student,
        layout.parallel,
        vocab_size=vocab_size,
        max_sequence_length=config.data.student_sequence_length,
        device=config.device,
        seed=config.train.seed,
        params_dtype=torch.bfloat16 if config.train.bf16 else torch.float32,
    ).to(layout.device)
    load_model(model, Path(config.run_dir), "evaluation", HeadIds(vocab_size, tokenizer.fingerprint))
    model.eval()
    return Student(model, tokenizer, vocab_size, config)


@torch.no_grad()
def held_out_loss(student: Student, prepared: PreparedData) -> dict[str, float]:
    """Losses over every document of prepared data, once.

    Keys: `nats_per_byte`, `bits_per_byte` (all losses over the documents' UTF-8 bytes), `loss`, `loss_multi_digit`,
    `loss_rest` (nats per token), `probability_multi_digit` (mean probability of the right token), `mass_multi_digit`
    (mean probability of any token of several digits where one follows), `tokens`,
    `multi_digit_tokens`, `bytes`; and for each class of tokens that occurs `loss/CLASS` and `tokens/CLASS`. A mean over
    no token is NaN.
    """
    numerals = multi_digit_ids(student.tokenizer, student.vocab_size)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    num_bytes = 0
    for batch, batch_bytes in _batches(student, prepared):
        parts.append(token_losses(student, batch, numerals))
        num_bytes += batch_bytes
    loss, mass, label = (torch.cat(part) for part in zip(*parts, strict=True))
    is_numeral = numerals[label]
    nats = float(loss.sum()) / num_bytes
    return {
        "nats_per_byte": nats,
        "bits_per_byte": nats / math.log(2),
        "loss": _mean(loss),
        "loss_multi_digit": _mean(loss[is_numeral]),
        "loss_rest": _mean(loss[~is_numeral]),
        "probability_multi_digit": _mean((-loss[is_numeral]).exp()),
        "mass_multi_digit": _mean(mass[is_numeral]),
        "tokens": float(len(loss)),
        "multi_digit_tokens": float(is_numeral.sum()),
        "bytes": float(num_bytes),
        **class_losses(student.tokenizer, loss, label),
    }


def class_losses(tokenizer: Tokenizer, loss: Tensor, label: Tensor) -> dict[str, float]:
    """Mean loss and number of tokens of each class of the tokens [n] that occur, in the order of `TokenClass`."""
    names = {i: class_of(tokenizer, i) for i in label.unique().tolist()}
    found: dict[str, float] = {}
    for name in TokenClass:
        ids = torch.tensor([i for i, own in names.items() if own is name], dtype=label.dtype)
        if len(ids):
            of_class = loss[torch.isin(label, ids)]
            found |= {f"loss/{name.value}": _mean(of_class), f"tokens/{name.value}": float(len(of_class))}
    return found


def class_of(tokenizer: Tokenizer, token_id: int) -> TokenClass:
    """The class of a token, as the coverage audit counts them."""
    if token_id in tokenizer.special_roles:
        return TokenClass.SPECIAL
    return token_class(tokenizer.token_bytes(token_id))


def multi_digit_ids(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """[vocab_size] bool, True for tokens of two or more ASCII digits, with or without a space before them."""
    matches = [MULTI_DIGIT.fullmatch(tokenizer.token_bytes(i)) is not None for i in range(tokenizer.vocab_size)]
    return torch.tensor(matches + [False] * (vocab_size - tokenizer.vocab_size))


def token_losses(student: Student, batch: DistillBatch, numerals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-log p of each counted token of a batch, the probability of all `numerals` there, and those tokens; on the CPU.

    numerals [vocab_size] bool. [n] float64 in nats, [n] float64, [n] int64. Two all-reduces over tp for each block of
    rows, besides those of the softmax.
    """
    head, tp_group = head_weight(student.model), student.model.pg_collection.tp
    own = RowRange.of_head(head, tp_group)[tp_group.rank()].clip(student.vocab_size)
    options = head_options(student.model).of_rows(slice(len(own)))
    batch = batch.to(head.device)
    positions = batch.student_position_ids
    hidden = rows(student.model(batch.student_tokens, positions, document_mask(positions)))
    labels, counted = batch.student_labels.flatten(), batch.student_loss_mask.flatten() > 0
    hidden, labels = hidden[counted], labels[counted]
    own_numerals = numerals[own.start : own.end].nonzero().squeeze(-1).to(head.device)
    losses: list[Tensor] = []
    masses: list[Tensor] = []
    for block, label in zip(hidden.split(BLOCK_ROWS), labels.split(BLOCK_ROWS), strict=True):
        log_probs = log_softmax(logits_of(block, head[: len(own)], options), vocabulary_of(tp_group))
        loss = cross_entropy_per_row(log_probs, own.local(label), torch.ones_like(label, dtype=torch.float32))
        mass = log_probs.index_select(1, own_numerals).exp().sum(-1)
        for sums, part in ((losses, loss), (masses, mass)):
            dist.all_reduce(part, group=tp_group)
            sums.append(part)
    return torch.cat(losses).double().cpu(), torch.cat(masses).double().cpu(), labels.cpu()


def exact_answers(student: Student, questions: Sequence[Question], max_new_tokens: int) -> list[bool]:
    """For each (prompt, answer), whether the greedy continuation is the answer up to the end of its line or the text.

    Compared as text without the white space around it, so that another split into tokens counts as the same.
    """
    prompts = [_prompt_ids(student.tokenizer, prompt) for prompt, _ in questions]
    stops = _stop_ids(student.tokenizer)
    right: list[bool] = []
    for first in range(0, len(questions), ANSWERS_AT_A_TIME):
        part = slice(first, first + ANSWERS_AT_A_TIME)
        answers = generate(student.model, prompts[part], max_new_tokens, stops, student.vocab_size)
        for ids, (_, expected) in zip(answers, questions[part], strict=True):
            right.append(_first_line(student.tokenizer.decode(ids)) == _first_line(expected))
    return right


def _load_tokenizer(config: RunConfig, prepared: PreparedData) -> Tokenizer:
    """The student's tokenizer, which has to be that of the run's own data as well."""
    side = prepared.manifest.student
    trained_on = PreparedData.open(config.data.parts[0].path).manifest.student
    if side.fingerprint != trained_on.fingerprint:
        raise DataError(
            f"{prepared.path} was prepared with {side.spec}, but the run was trained with {trained_on.spec}; "
            "prepare it with that tokenizer"
        )
    tokenizer = tokenizers.load(side.spec)
    if tokenizer.fingerprint != side.fingerprint:
        raise DataError(f"{side.spec} is not the tokenizer any more that prepared {prepared.path}; prepare it again")
    return tokenizer


def _batches(student: Student, prepared: PreparedData) -> Iterator[tuple[DistillBatch, int]]:
    data = student.config.data
    yield from sequential_batches(
        prepared,
        data.student_sequence_length,
        teacher_lengths(data, prepared.manifest),
        student.config.train.micro_batch_size,
        data.exact_chunks_only,
        teachers=(),
    )


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt as the training data would begin it."""
    bos = role_id(tokenizer, "bos")
    return ([] if bos is None else [bos]) + tokenizer.encode(prompt).ids.tolist()


def _stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The end of the text, and every token that begins with the end of a line."""
    ends = {i for i, role in tokenizer.special_roles.items() if role == "eos"}
    return frozenset(ends | {i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i).startswith(b"\n")})


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _mean(values: Tensor) -> float:
    return float(values.mean())
