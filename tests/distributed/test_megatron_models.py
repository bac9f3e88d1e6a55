"""Megatron models as the package builds them: the tapped head, the masks, weights that no layout changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import ModelConfig, ParallelConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.attention_mask import document_mask
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import head_weight, rows
from nemo_xtoken.integrations.megatron.models import build_gpt, padded_vocab_size
from nemo_xtoken.parallel import context_positions
from tests.distributed.ranks import run_ranks

MODEL = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48)
VOCAB = 61


def build(model: ModelConfig, **parallel: int | bool):
    config = ParallelConfig(**parallel)  # type: ignore[arg-type]
    layout = layouts.start(config, "cpu", seed=3)
    gpt = build_gpt(
        model,
        config,
        vocab_size=VOCAB,
        max_sequence_length=16,
        device="cpu",
        seed=3,
        pre_process=layout.is_first_stage,
        post_process=layout.is_last_stage,
    )
    return layout, gpt


def tokens_and_positions() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(1))
    return tokens, torch.arange(16).expand(2, -1).contiguous()


def gather_columns(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts, -1)


def logits_of(model: ModelConfig, parallel: dict[str, int | bool]) -> Tensor:
    _, gpt = build(model, **parallel)
    tokens, positions = tokens_and_positions()
    hidden = gpt(tokens, positions, document_mask(positions))
    return gather_columns(rows(hidden) @ head_weight(gpt).t())[:, :VOCAB]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_initial_weights_and_logits_are_the_same_in_every_layout(activation: str) -> None:
    model = ModelConfig(**{**vars(MODEL), "activation": activation})
    (alone,) = run_ranks(1, logits_of, model, {})
    for parallel in ({"tensor_model_parallel_size": 2}, {"tensor_model_parallel_size": 2, "sequence_parallel": True}):
        for logits in run_ranks(2, logits_of, model, parallel):
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)


def keys_and_shapes(shared: bool) -> dict[str, tuple[int, ...]]:
    _, gpt = build(ModelConfig(**{**vars(MODEL), "share_embeddings_and_output_weights": shared}))
    return {name: tuple(value.shape) for name, value in gpt.state_dict().items() if value is not None}


@pytest.mark.timeout(60)
def test_the_tapped_head_keeps_the_state_dict_keys() -> None:
    (own,) = run_ranks(1, keys_and_shapes, False)
    (shared,) = run_ranks(1, keys_and_shapes, True)
    assert own["output_layer.weight"] == (64, 32)
    assert "output_layer.weight" not in shared
    assert set(own) == {*shared, "output_layer.weight"}


def tapped_and_whole_logits(shared: bool) -> tuple[Tensor, Tensor]:
    """Logits through the tap, and those of Megatron's own output layer on the same weights."""
    from megatron.core.tensor_parallel import ColumnParallelLinear

    _, gpt = build(ModelConfig(**{**vars(MODEL), "share_embeddings_and_output_weights": shared}))
    tokens, positions = tokens_and_positions()
    tapped = gpt(tokens, positions, None) @ head_weight(gpt).t()
    own: Any = ColumnParallelLinear(32, 64, config=gpt.config, init_method=lambda w: w, bias=False)
    own.weight = head_weight(gpt)
    gpt.output_layer = own
    return tapped.detach(), gpt(tokens, positions, None).detach()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("shared", [False, True])
def test_hidden_states_times_the_head_are_megatrons_own_logits(shared: bool) -> None:
    ((tapped, whole),) = run_ranks(1, tapped_and_whole_logits, shared)
    torch.testing.assert_close(tapped, whole, rtol=1e-5, atol=1e-6)


def hidden_of_packed_and_alone() -> tuple[Tensor, Tensor, Tensor]:
    _, gpt = build(MODEL)
    tokens, _ = tokens_and_positions()
    tokens = tokens[:1]
    packed = torch.cat([torch.arange(10), torch.arange(6)])[None]
    mask = document_mask(packed)
    masked, leaking = gpt(tokens, packed, mask), gpt(tokens, packed, None)
    alone = gpt(tokens[:, 10:], torch.arange(6)[None], None)
    return masked[0, 10:].detach(), alone[0].detach(), leaking[0, 10:].detach()


@pytest.mark.timeout(60)
def test_a_packed_document_has_the_hidden_states_it_has_alone() -> None:
    ((packed, alone, leaking),) = run_ranks(1, hidden_of_packed_and_alone)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    assert (leaking - alone).abs().max() > 1e-3


def hidden_of_packed(cp_size: int) -> Tensor:
    """Hidden states of two packed documents, put together from the parts of all cp ranks."""
    layout, gpt = build(MODEL, context_parallel_size=cp_size)
    tokens, _ = tokens_and_positions()
    packed = torch.cat([torch.arange(10), torch.arange(6)]).expand(2, -1)
    hidden = gpt(*model_inputs(tokens, packed, layout.groups.cp)).detach()
    parts = [torch.empty_like(hidden) for _ in range(cp_size)]
    dist.all_gather(parts, hidden.contiguous())
    whole = torch.empty(2, 16, hidden.shape[-1])
    for rank, part in enumerate(parts):
        whole[:, context_positions(16, rank, cp_size)] = part
    return whole


@pytest.mark.timeout(60)
def test_packed_documents_have_the_same_hidden_states_when_sequences_are_cut_over_cp() -> None:
    (alone,) = run_ranks(1, hidden_of_packed, 1)
    for cp_size in (2, 4):
        for hidden in run_ranks(cp_size, hidden_of_packed, cp_size):
            torch.testing.assert_close(hidden, alone, rtol=1e-4, atol=1e-6)


class OneOfTwo:
    """The first of two cp ranks, as far as a mask asks."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 2


def test_the_document_mask_by_hand() -> None:
    mask = document_mask(torch.tensor([[0, 1, 0]]))
    assert mask is not None
    assert mask[0, 0].tolist() == [[False, True, True], [False, False, True], [True, True, False]]
    assert document_mask(torch.tensor([[0, 1, 2], [0, 1, 2]])) is None


def test_the_mask_of_a_cp_rank_by_hand() -> None:
    """Positions 0 and 3 against those of both ranks, 0 3 and 1 2; a document starts at position 2."""
    group: Any = OneOfTwo()
    mask = document_mask(torch.tensor([[0, 1, 0, 1]]), group)
    assert mask is not None
    assert mask[0, 0].tolist() == [[False, True, True, True], [True, False, True, False]]
    one_document = document_mask(torch.tensor([[0, 1, 2, 3]]), group)
    assert one_document is not None
    assert one_document[0, 0].tolist() == [[False, True, True, True], [False, False, False, False]]


def test_the_head_is_padded_to_a_multiple_of_divisor_times_tp_size() -> None:
    assert padded_vocab_size(MODEL, 61, 1) == 64
    assert padded_vocab_size(MODEL, 64, 1) == 64
    assert padded_vocab_size(MODEL, 61, 16) == 128


def start_with(parallel: dict[str, Any]) -> None:
    layouts.start(ParallelConfig(**parallel), "cpu", seed=3)


@pytest.mark.timeout(60)
def test_a_layout_that_does_not_fit_the_ranks_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"needs 4 ranks .* the job has 2"):
        run_ranks(2, start_with, {"tensor_model_parallel_size": 4})
