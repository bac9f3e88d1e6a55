"""What is stored of a teacher, and the loss on it: round trips, damage, and that draws are unbiased."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nemo_xtoken.cli.app import run
from nemo_xtoken.config import LossConfig, Merge
from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.parallel import HeadOptions, distillation_loss, shard_pair
from nemo_xtoken.parallel.sparse_teacher import SparseTeacher
from nemo_xtoken.teachers.cache import (
    CacheManifest,
    CacheReader,
    ShardFile,
    Storage,
    StoredHead,
    check_shards,
    shard_starts,
)
from nemo_xtoken.teachers.cache.rows import (
    bytes_per_token,
    choose_top_k,
    decode_hidden,
    decode_sparse,
    draw,
    encode_hidden,
    encode_sparse,
)
from nemo_xtoken.types import SparseLogits
from tests.problems import Problem, random_problem

ROWS = torch.tensor([4, 0, 4, 2])


def log_probs(rows: int, vocab: int, seed: int = 0) -> Tensor:
    return (2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def test_hidden_states_come_back_as_they_were_stored() -> None:
    hidden = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(decode_hidden(encode_hidden(hidden, Storage(stored_as="fp32")), ROWS), hidden[ROWS])
    in_bf16 = decode_hidden(encode_hidden(hidden, Storage()), ROWS)
    assert torch.equal(in_bf16, hidden[ROWS].bfloat16())


def test_fp8_has_a_scale_for_each_block() -> None:
    hidden = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    hidden[:, :128] *= 1e6  # with one scale for a row, the rest of it would be flushed to zero
    hidden[2] = 0
    tensors = encode_hidden(hidden, Storage(stored_as="fp8"))
    back = decode_hidden(tensors, torch.arange(5))
    for block in (slice(0, 128), slice(128, 256), slice(256, 300)):
        part, stored = hidden[:, block], back[:, block]
        assert (part - stored).abs().max() <= part.abs().max() / 448 * 16  # half a step of e4m3 at the top
        assert (part - stored).norm() < 0.04 * part.norm()
    row_scale = hidden.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 448
    by_row = (hidden / row_scale).to(torch.float8_e4m3fn).float() * row_scale
    assert (by_row[:, 128:] - hidden[:, 128:]).norm() > 0.2 * hidden[:, 128:].norm()
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 5 * bytes_per_token(
        Storage(stored_as="fp8"), 300
    )


def test_top_k_keeps_the_likeliest_and_the_label() -> None:
    log = log_probs(6, 40)
    labels = torch.tensor([-1, *log[1:].argmin(-1).tolist()])
    storage = Storage(stored_as="top_k", count=8)
    found = choose_top_k(log, labels, 8)
    assert torch.equal(found.ids[0], log[0].topk(8).indices)
    assert (found.ids[1:] == labels[1:, None]).sum(-1).tolist() == [1] * 5
    back = decode_sparse(encode_sparse(found, storage), torch.tensor([3, 0]), storage, 40)
    assert torch.equal(back.ids, found.ids[[3, 0]])
    torch.testing.assert_close(back.log_probs, found.log_probs[[3, 0]], rtol=1e-3, atol=1e-3)


def test_ids_may_be_wider_than_16_bits() -> None:
    log = torch.full((1, 200_000), -20.0)
    log[0, 199_999], log[0, 70_000] = -0.5, -1.0
    storage = Storage(stored_as="top_k", count=2)
    back = decode_sparse(encode_sparse(choose_top_k(log, torch.tensor([-1]), 2), storage), ROWS[1:2], storage, 200_000)
    assert back.ids.tolist() == [[199_999, 70_000]]


def test_rows_without_an_entry_come_back_empty() -> None:
    storage = Storage(stored_as="top_k", count=3)
    entries = SparseLogits.empty(5, 3, 9)
    entries.ids[2, 0], entries.log_probs[2, 0] = 7, -0.25
    back = decode_sparse(encode_sparse(entries, storage), torch.tensor([4, 2]), storage, 9)
    assert back.ids.tolist() == [[-1, -1, -1], [7, -1, -1]]
    assert back.log_probs[1, 0] == -0.25
    nothing = decode_sparse(encode_sparse(SparseLogits.empty(5, 3, 9), storage), ROWS, storage, 9)
    assert (nothing.ids == -1).all()


def test_draws_are_unbiased_and_top_k_is_not() -> None:
    """Mean of many draws against the distribution, column by column, in units of the standard error."""
    log, rounds, count = log_probs(1, 12), 4000, 5
    generator = torch.Generator().manual_seed(3)
    storage = Storage(stored_as="sampled", count=count)
    drawn = draw(log.expand(rounds, -1), count, generator)
    back = decode_sparse(encode_sparse(drawn, storage), torch.arange(rounds), storage, 12)
    dense = torch.zeros(rounds, 13).scatter_add_(1, back.ids % 13, back.log_probs.exp() * (back.ids >= 0))[:, :12]
    assert torch.allclose(dense.sum(-1), torch.ones(rounds), atol=1e-5)
    probability = log[0].exp()
    error = (probability * (1 - probability) / (rounds * count)).sqrt()
    assert ((dense.mean(0) - probability) / error).abs().max() < 4
    kept = choose_top_k(log, torch.tensor([-1]), count)
    top = torch.zeros(1, 12).scatter_(1, kept.ids, kept.log_probs.exp().softmax(-1))[0]
    assert ((top - probability) / error).abs().max() > 20


def gradients(problem: Problem, teacher: Tensor | SparseLogits, config: LossConfig) -> tuple[Tensor, float]:
    """The gradient of the student's head, and the value less the teacher's entropy."""
    head = problem.student_head.clone().requires_grad_()
    teacher_head = None if isinstance(teacher, SparseLogits) else problem.teacher_head
    terms = distillation_loss(
        problem.student_hidden, head, teacher, teacher_head, problem.batch, problem.matrix, config
    )
    terms.numerator.backward()
    assert head.grad is not None
    return head.grad, (terms.numerator + terms.metrics["teacher_entropy"].total).item()


def all_entries(problem: Problem) -> SparseLogits:
    """The whole distribution as entries."""
    log = problem.teacher_logits.log_softmax(-1)
    return SparseLogits(torch.arange(log.shape[1]).expand(len(log), -1), log, log.shape[1])


@pytest.mark.parametrize("mode", ["p_kl", "h_kl", "gold", "uld", "strict_top_k"])
@pytest.mark.parametrize("merge", ["mean", "first", "last"])
def test_all_entries_give_the_loss_of_the_hidden_states(mode: str, merge: str) -> None:
    problem = random_problem(2)
    config = LossConfig(mode=mode, merge=merge, teacher_top_k=9)  # type: ignore[arg-type]
    entries = all_entries(problem)
    shuffled = torch.stack([torch.randperm(19, generator=torch.Generator().manual_seed(i)) for i in range(48)])
    entries = replace(entries, ids=shuffled, log_probs=entries.log_probs.gather(1, shuffled))
    exact, value = gradients(problem, problem.teacher_hidden, config)
    sparse, sparse_value = gradients(problem, entries, config)
    torch.testing.assert_close(sparse, exact, rtol=1e-9, atol=1e-9)
    assert sparse_value == pytest.approx(value, rel=1e-9)


def test_a_rank_s_columns_are_those_of_its_pair() -> None:
    problem = random_problem(2)
    pair = shard_pair(problem.matrix, LossConfig(mode="p_kl"), problem.student_head)
    chosen = torch.tensor([1, 5])
    teacher = SparseTeacher(all_entries(problem), pair)
    expected = problem.teacher_logits.log_softmax(-1)[ROWS][:, pair.teacher_rows]
    torch.testing.assert_close(logits_of(teacher, ROWS), expected)
    torch.testing.assert_close(logits_of(teacher.on(chosen), ROWS), expected[:, chosen])


def logits_of(teacher: SparseTeacher, rows: Tensor) -> Tensor:
    return teacher.logits(rows, torch.empty(len(rows), teacher.width, dtype=teacher.dtype))


def test_the_tail_of_top_k_is_spread_over_the_others() -> None:
    problem = random_problem(2)
    pair = shard_pair(problem.matrix, LossConfig(mode="h_kl"), problem.student_head)
    kept = choose_top_k(problem.teacher_logits.log_softmax(-1), torch.full((48,), -1), 4)
    probabilities = logits_of(SparseTeacher(kept, pair), torch.arange(48)).exp()
    assert torch.allclose(probabilities.sum(-1), torch.ones(48, dtype=torch.float64))
    rest = 1 - kept.log_probs.exp().sum(-1)
    assert torch.allclose(probabilities.amin(-1), rest / 15)


@pytest.mark.parametrize("merge", ["first", "last"])
def test_the_gradient_from_draws_is_unbiased(merge: Merge) -> None:
    """The mean gradient of many caches against the exact one; a mean of logarithms over several rows is off."""
    problem = random_problem(5)
    log = problem.teacher_logits.log_softmax(-1)
    generator = torch.Generator().manual_seed(11)

    def mean_error(config: LossConfig, rounds: int = 250) -> float:
        exact, _ = gradients(problem, problem.teacher_hidden, config)
        found = torch.stack([gradients(problem, draw(log, 24, generator), config)[0] for _ in range(rounds)])
        error = found.std(0) / rounds**0.5
        return float((((found.mean(0) - exact) / error.clamp_min(1e-12)).square().mean()) ** 0.5)

    config = LossConfig(merge=merge, teacher_top_k=None)
    assert mean_error(config) < 1.3  # 1 is what chance gives, over 138 numbers
    assert mean_error(replace(config, merge="mean")) > 2


def write_cache(directory: Path, tokens: int = 10) -> tuple[CacheManifest, Tensor]:
    hidden = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(4))
    manifest = CacheManifest(
        teacher="t",
        data="d",
        hidden_size=6,
        vocab_size=9,
        storage=Storage(stored_as="fp32"),
        shard_starts=(0, 4, 7, 10),
    )
    manifest.claim(directory)
    StoredHead(torch.eye(9, 6), HeadOptions(torch.arange(9.0), 0.5, 30.0)).save(directory)
    for number in range(3):
        first, end = manifest.shard_starts[number : number + 2]
        ShardFile(directory, number).write(encode_hidden(hidden[first:end], manifest.storage))
    return manifest, hidden


def test_rows_are_found_across_shards(tmp_path: Path) -> None:
    _, hidden = write_cache(tmp_path)
    tokens = torch.tensor([9, 0, 3, 4, 6, 7, 0])
    reader = CacheReader(tmp_path)
    assert torch.equal(reader.hidden(tokens), hidden[tokens])
    weight, options = reader.head().rows(torch.tensor([2, 8]), torch.device("cpu"), torch.float64)
    assert torch.equal(weight, torch.eye(9, 6, dtype=torch.float64)[[2, 8]])
    assert options.bias is not None
    assert (options.bias.tolist(), options.scale, options.soft_cap) == ([2.0, 8.0], 0.5, 30.0)
    assert check_shards(tmp_path) == 3


def test_shards_are_of_whole_documents() -> None:
    assert shard_starts(np.array([3, 4, 9, 1, 1]), 5) == (0, 7, 16, 18)
    assert shard_starts(np.array([3]), 5) == (0, 3)


def test_a_cache_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    manifest, _ = write_cache(tmp_path)
    manifest.claim(tmp_path)
    with pytest.raises(ConfigError, match="another teacher, vocab_size; remove it"):
        replace(manifest, teacher="u", vocab_size=10).claim(tmp_path)


def test_a_cache_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path)
    ShardFile(tmp_path, 1).path.write_bytes(b"half")
    with pytest.raises(DataError, match="1 of 3 shards are missing, the first is shard 1"):
        CacheReader(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cache(tmp_path)
    assert run(["teacher", "check", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 3
    path = ShardFile(tmp_path, 2).path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run(["teacher", "check", str(tmp_path)]) == 1
    assert "shard-000002.safetensors is damaged" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--store", "fp4"], "expected one of bf16, fp32, fp8, top_k, sampled, got fp4"),
        (["--store", "top_k"], "top_k needs a count of tokens from 1 to 32767, got 0"),
        (["--count", "3"], "count is for top_k and sampled"),
        (["--part", "2/2"], "I from 0 to N - 1"),
    ],
)
def test_wrong_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    config = tmp_path / "run.yaml"
    model = "{num_layers: 1, hidden_size: 8, num_attention_heads: 2}"
    config.write_text(
        f"run_dir: r\nstudent: {model}\nteachers: [{{model: {model}, checkpoint: t}}]\noptimizer: {{lr: 1}}\n"
        "data: {path: d, student_sequence_length: 8, teacher_sequence_length: 8}\n"
        "train: {steps: 1, micro_batch_size: 1, global_batch_size: 1}\n"
    )
    assert run(["teacher", "cache", str(config), *arguments]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_missing_cache_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a teacher's cache at"):
        CacheReader(tmp_path / "none")
