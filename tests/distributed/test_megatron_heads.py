"""Heads of real models (bias, logit scale, soft cap, tied to the embedding): gradients, curves, evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_xtoken.config import BalanceConfig, ModelConfig, ParallelConfig, RunConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import evaluate, launch, train_loop
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.generate import generate
from nemo_xtoken.integrations.megatron.head_tap import head_options, head_weight, rows
from nemo_xtoken.integrations.megatron.setup import Training, set_up
from nemo_xtoken.integrations.megatron.step import Scales, count_global_batch
from nemo_xtoken.integrations.megatron.student import unwrap
from nemo_xtoken.losses import projected_kl
from nemo_xtoken.losses.cross_entropy import cross_entropy
from nemo_xtoken.projection import ProjectionMatrix
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.test_megatron_evaluation import QUESTIONS, load
from tests.distributed.test_megatron_training import assert_same_curve, curve

STUDENT_HEAD: dict[str, Any] = {"add_head_bias": True, "logit_scale": 2.5, "final_logit_softcapping": 2.0}
TEACHER = replace(toy.TEACHER, add_head_bias=True, logit_scale=1.5, final_logit_softcapping=6.0)
MODELS = {
    "untied": replace(toy.STUDENT, **STUDENT_HEAD),
    "tied": replace(toy.STUDENT, share_embeddings_and_output_weights=True, **STUDENT_HEAD),
}
KD_WEIGHT = 3.0
WATCHED = ("output_layer.weight", "output_layer.bias", "embedding.word_embeddings.weight", "final_layernorm.weight")

TP2 = ParallelConfig(tensor_model_parallel_size=2)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
CP2 = ParallelConfig(context_parallel_size=2)
DP2 = ParallelConfig(data_parallel_size=2)
LAYOUTS = {
    "alone": ParallelConfig(),
    "tp2_sequence_parallel": replace(TP2, sequence_parallel=True),
    "pp2": PP2,
    "cp2": CP2,
    "dp2": DP2,
    "tp2_pp2": replace(TP2, pipeline_model_parallel_size=2),
}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W, a teacher trained with such a head, and the students' runs on one rank."""
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(replace(toy.teacher_run(folder), student=TEACHER))
    for model in MODELS:
        launch(run(folder, f"{model}_alone", model))
    return folder


def run(folder: Path, name: str, model: str, parallel: ParallelConfig | None = None) -> RunConfig:
    balance = BalanceConfig(mode="fixed", kd_weight=KD_WEIGHT)
    config = toy.student_run(folder, name, parallel=parallel, balance=balance)
    (teacher,) = config.teachers
    teacher = replace(teacher, model=TEACHER, learn_projection=True)
    return replace(config, student=MODELS[model], teachers=(teacher,))


def start(config: RunConfig) -> Training:
    """A run before its first step, whose student's head has a bias that is not zero."""
    training = set_up(config, layouts.start(config.parallel, "cpu", config.train.seed))
    if training.layout.is_last_stage:
        bias: Any = unwrap(training.models[-1]).output_layer.bias
        first = training.layout.groups.tp.rank() * len(bias)
        with torch.no_grad():
            bias.copy_(0.2 * torch.cos(torch.arange(first, first + len(bias))))
    return training


def gradients_of_a_step(config: RunConfig) -> dict[str, Tensor]:
    """What Megatron's schedule makes of a step, for this rank's parameters, by name; "W": of its parameters."""
    training = start(config)
    micro_batches = next(training.batches())
    counts = count_global_batch(micro_batches, training.losses, training.layout)
    scales = Scales.of(counts, KD_WEIGHT, 1.0)
    train_loop.run_micro_batches(training, micro_batches, scales, forward_only=False)
    (model,) = training.models
    found: dict[str, Tensor] = {
        name: parameter.main_grad.clone()  # type: ignore[attr-defined]
        for name, parameter in unwrap(model).named_parameters()
        if name.endswith(WATCHED)
    }
    for projection in training.objective.learnt_projections:
        assert projection.parameters.grad is not None
        found["W of this rank"] = projection.parameters.grad / counts.tokens
        projection.step(counts.tokens)
        beta = projection.optimizer.param_groups[0]["betas"][0]
        found["W"] = projection.sharded_state_dict()["exp_avg"].data / (1 - beta)
    return found


def logits_with(hidden: Tensor, head: Tensor, bias: Tensor, model: ModelConfig) -> Tensor:
    cap = model.final_logit_softcapping
    assert cap is not None
    return cap * torch.tanh(model.logit_scale * (hidden @ head.t() + bias) / cap)


def gradients_on_full_logits(config: RunConfig, plain_head: bool) -> dict[str, Tensor]:
    """The same from one process, whole logits on both sides, the pure math and torch's autograd."""
    training = start(config)
    objective, student = training.objective, unwrap(training.models[0])
    (colocated,) = objective.teachers
    teacher, (projection,) = toy.model_of(colocated), objective.learnt_projections
    student_bias, teacher_bias = head_options(student).bias, head_options(teacher).bias
    assert student_bias is not None
    assert teacher_bias is not None
    assert teacher_bias.abs().max() > 0.05
    matrix = ProjectionMatrix.load(config.teachers[0].projection or "")
    training.models[0].zero_grad_buffer()
    micro_batches = next(training.batches())
    kd, ce, chunks, tokens = (torch.zeros(()) for _ in range(4))
    for batch in micro_batches:
        inputs = model_inputs(batch.student_tokens, batch.student_position_ids, training.layout.groups.cp)
        hidden, head = rows(student(*inputs)), head_weight(student)
        logits = hidden @ head.t() if plain_head else logits_with(hidden, head, student_bias, config.student)
        teacher_hidden = colocated.hidden(batch)
        assert isinstance(teacher_hidden, Tensor)
        teacher_logits = logits_with(teacher_hidden, head_weight(teacher), teacher_bias, TEACHER)
        kd_terms = projected_kl(logits, teacher_logits, batch, matrix, colocated.loss, projection.weights())
        ce_terms = cross_entropy(logits, batch, objective.vocab_size)
        kd, chunks = kd + kd_terms.numerator, chunks + kd_terms.denominator
        ce, tokens = ce + ce_terms.numerator, tokens + ce_terms.denominator
    (KD_WEIGHT * kd / chunks + ce / tokens).backward()
    # Megatron's wrapper keeps what autograd hands to a parameter in main_grad; on one rank it does nothing to it.
    found = {name: p.main_grad.clone() for name, p in student.named_parameters() if name.endswith(WATCHED)}  # type: ignore[attr-defined]
    assert projection.parameters.grad is not None
    return {**found, "W": projection.parameters.grad.clone()}


def whole(config: RunConfig, of_ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Gradients of whole parameters: tp ranks are the first, their parts are rows of the vocabulary."""
    tp_size = config.parallel.tensor_model_parallel_size
    stages = [of_ranks[:tp_size], of_ranks[-tp_size:]]
    found: dict[str, Tensor] = {}
    for stage in stages:
        for name, gradient in stage[0].items():
            found[name] = gradient if "norm" in name else torch.cat([part[name] for part in stage])
    return found


def far(a: Tensor, b: Tensor) -> float:
    """Largest difference in proportion to the largest value, padded rows left out."""
    size = min(len(a), len(b))
    assert not a[size:].any()
    assert not b[size:].any()
    return float((a[:size] - b[:size]).abs().max() / b.abs().max())


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_a_step_are_those_of_full_logits(folder: Path, model: str) -> None:
    config = run(folder, f"{model}_gradients", model)
    ((reference),) = run_ranks(1, gradients_on_full_logits, config, False)
    ((plain),) = run_ranks(1, gradients_on_full_logits, config, True)
    expected = {"output_layer.bias", "embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "W"}
    assert set(reference) == expected | ({"output_layer.weight"} if model == "untied" else set())
    for name, parallel in LAYOUTS.items():
        cut = replace(config, parallel=parallel)
        found = whole(cut, run_ranks(parallel.world_size, gradients_of_a_step, cut))
        assert set(reference) <= set(found)
        for parameter, gradient in reference.items():
            assert far(found[parameter], gradient) < 1e-5, (name, parameter)
        is_split = parallel in (DP2, CP2)
        assert (far(found["W of this rank"], reference["W"]) > 0.1) == is_split, "a rank alone has seen a part"
    assert not plain["output_layer.bias"].any()
    assert far(plain["decoder.final_layernorm.weight"], reference["decoder.final_layernorm.weight"]) > 0.1


@pytest.mark.parametrize("name", ["tp2_sequence_parallel", "cp2", "tp2_pp2"])
def test_every_layout_gives_the_same_curve(folder: Path, name: str) -> None:
    model = "tied" if name == "tp2_pp2" else "untied"
    config = run(folder, f"{model}_{name}", model, LAYOUTS[name])
    alone = toy.metrics(run(folder, f"{model}_alone", model))
    assert alone[-1]["ce"] < alone[0]["ce"] - 0.1
    assert_same_curve(curve(config), alone)


def test_a_bias_is_trained_and_kept(folder: Path) -> None:
    from megatron.core import dist_checkpointing

    stored: Any = dist_checkpointing.load_tensors_metadata(str(checkpoint_path(folder / "tied_alone", 6)))
    assert stored["output_layer.bias"].global_shape == (328,)
    ((trained, padding),) = run_ranks(1, bias_of, run(folder, "tied_alone", "tied"))
    assert trained > 1e-3
    assert padding == 0


def bias_of(config: RunConfig) -> tuple[float, float]:
    bias = head_options(load(config, ParallelConfig()).model).bias
    assert bias is not None
    return float(bias[:323].abs().min()), float(bias[323:].abs().max())


def naive_evaluation(config: RunConfig, wrong: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Answers by `generate`, and by whole logits of one prompt after the other; wrong: without the bias."""
    student = load(config, ParallelConfig())
    bias = head_options(student.model).bias
    assert bias is not None
    bias.data += 0.3 * torch.cos(torch.arange(len(bias)))
    prompts = [student.tokenizer.encode(prompt).ids.tolist() for prompt, _ in QUESTIONS]
    naive: list[list[int]] = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(3):
            hidden = student.model(torch.tensor([tokens]), torch.arange(len(tokens))[None], None)[0, -1:]
            logits = logits_with(hidden, head_weight(student.model), bias * (not wrong), config.student)
            tokens.append(int(logits[0, : student.vocab_size].argmax()))
        naive.append(tokens[len(prompt) :])
    return generate(student.model, prompts, 3, frozenset(), student.vocab_size), naive


def test_answers_are_those_of_the_whole_head(folder: Path) -> None:
    config = run(folder, "untied_alone", "untied")
    ((answers, naive),) = run_ranks(1, naive_evaluation, config, False)
    ((_, without_bias),) = run_ranks(1, naive_evaluation, config, True)
    assert answers == naive
    assert naive != without_bias


def test_held_out_losses_are_those_of_training(folder: Path) -> None:
    """Validation data in training and the evaluation's own pass over it, at tp 1 and 2, agree on a token's loss."""
    config = run(folder, "untied_alone", "untied")
    held_out = str(folder / "held_out")
    alone, two = (evaluate(config, held_out, parallel=parallel) for parallel in (None, TP2))
    assert two == pytest.approx(alone, rel=1e-5)
    plain = replace(config, student=replace(config.student, final_logit_softcapping=None, logit_scale=1.0))
    assert abs(evaluate(plain, held_out)["loss"] / alone["loss"] - 1) > 1e-2
    ((validated),) = run_ranks(1, validation_loss, config)
    assert validated == pytest.approx(alone["loss"], rel=2e-2)


def validation_loss(config: RunConfig) -> float:
    train = replace(config.train, validation_batches=4)
    training = set_up(replace(config, train=train), layouts.start(config.parallel, "cpu", config.train.seed))
    return float(train_loop.validate(training)["validation_ce"])


def test_heads_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="logit_scale must be positive, got 0"):
        replace(toy.STUDENT, logit_scale=0.0)
    with pytest.raises(ConfigError, match="final_logit_softcapping must be null or positive, got -1"):
        replace(toy.STUDENT, final_logit_softcapping=-1.0)
