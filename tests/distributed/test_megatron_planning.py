"""What a plan says of memory, against what megatron-core and the loss take on this machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_xtoken.config import LossConfig, ModelConfig, ParallelConfig, RunConfig
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.optimizer import build_optimizer, wrap_data_parallel
from nemo_xtoken.integrations.megatron.student import build_student
from nemo_xtoken.parallel import cut_head, distillation_loss, shard_pair
from nemo_xtoken.planning.memory import loss_block_bytes, student_memory
from nemo_xtoken.planning.shapes import Shape
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.problems import random_problem

VOCABULARY = 323
OTHER = replace(
    toy.STUDENT,
    normalization="LayerNorm",
    activation="gelu",
    num_query_groups=None,
    ffn_hidden_size=None,
    share_embeddings_and_output_weights=True,
)
LAYOUTS = {
    "alone": ParallelConfig(),
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "dp2": ParallelConfig(data_parallel_size=2, use_distributed_optimizer=True),
}


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measured(config: RunConfig) -> tuple[int, int, int]:
    """Bytes of weights, gradients and Adam's moments on the last rank after a step."""
    layout = layouts.start(config.parallel, "cpu", seed=1)
    (model,) = build_student(config, layout, VOCABULARY)
    ddp = wrap_data_parallel(model, config)
    optimizer = build_optimizer([ddp], config)
    for parameter in model.parameters():
        parameter.main_grad.fill_(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    gradients = [parameter.main_grad for parameter in model.parameters()]  # type: ignore[attr-defined]
    states = [
        state[name] for state in optimizer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]  # fmt: skip
    return bytes_of(list(model.parameters())), bytes_of(gradients), bytes_of(states)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("model", [toy.STUDENT, OTHER], ids=["llama", "gpt"])
def test_weights_gradients_and_optimizer(tmp_path: Path, name: str, model: ModelConfig) -> None:
    parallel = LAYOUTS[name]
    config = replace(toy.student_run(tmp_path, parallel=parallel), student=model)
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    memory = student_memory(config, Shape(model, VOCABULARY, tp, pp), [], parallel.data_parallel_size)
    weights, gradients, moments = run_ranks(parallel.world_size, measured, config)[-1]
    assert (memory.weights, memory.gradients) == (weights, gradients)
    assert memory.optimizer == pytest.approx(moments, rel=0.02)  # Megatron pads the buffers that it cuts over dp


def peak_bytes(config: LossConfig) -> int:
    """That the loss of a micro batch adds to this process's resident memory, inputs and heads being there."""
    problem = random_problem(
        1, student_vocab=32768, teacher_vocab=49152, sequences=2, length=1200, teacher_length=1200, dtype=torch.float32
    )
    head = torch.randn(32768, 64).requires_grad_()
    pair = shard_pair(problem.matrix, config, head)
    teacher_head = cut_head(torch.randn(49152, 80), pair)
    hidden, teacher_hidden = torch.randn(2400, 64).requires_grad_(), torch.randn(2400, 80)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    distillation_loss(hidden, head, teacher_hidden, teacher_head, problem.batch, pair, config)
    return status("VmHWM") - before


def status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("block_rows", [None, 384])
def test_the_loss_stays_within_what_is_planned_for_it(tmp_path: Path, block_rows: int | None) -> None:
    loss = LossConfig(mode="h_kl", block_rows=block_rows)
    config = toy.student_run(tmp_path)
    config = replace(config, teachers=(replace(config.teachers[0], loss=loss),))
    student = ModelConfig(num_layers=1, hidden_size=64, num_attention_heads=2)
    teacher = replace(student, hidden_size=80)
    planned = loss_block_bytes(config, Shape(student, 32768), Shape(teacher, 49152), 0)
    (peak,) = run_ranks(1, peak_bytes, loss)
    assert 0.3 * planned < peak < planned
