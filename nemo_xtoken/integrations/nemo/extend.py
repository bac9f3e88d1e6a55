"""A NeMo pretraining recipe as a distillation recipe, with everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import fiddle as fdl
import nemo_run as run

from nemo_xtoken.config import BalanceConfig, LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.nemo.callbacks import DistillationProgress, ProjectionSnapshots
from nemo_xtoken.integrations.nemo.config import DistillationConfig, NemoTeacher
from nemo_xtoken.integrations.nemo.data import PreparedDataModule
from nemo_xtoken.integrations.nemo.model import CrossTokenizerDistillationModel


def distill_recipe(
    student_recipe: run.Partial,
    teachers: Sequence[run.Config[NemoTeacher]],
    data: run.Config[PreparedDataModule],
    loss: run.Config[LossConfig] | None = None,
    balance: run.Config[BalanceConfig] | None = None,
) -> run.Partial:
    """The recipe of `llm.llama32_1b.pretrain_recipe(...)` and its like, distilled; the input is unchanged.

    What changes: the model becomes a `CrossTokenizerDistillationModel` around the same config, the data is prepared
    data, the config's seq_length is the data's, gradients are summed and not averaged, and metrics are logged. Layout,
    precision, optimizer, schedule, logging, resumption and callbacks stay.

    Args:
        teachers: `run.Config(NemoTeacher, ...)`.
        data: `run.Config(PreparedDataModule, ...)`.
        loss: how every teacher is compared, in the place of what the teachers say.
        balance: by default dynamic.

    Raises ConfigError where the recipe is not one of a NeMo GPT.
    """
    recipe: Any = copy.deepcopy(student_recipe)
    student: Any = getattr(getattr(recipe, "model", None), "config", None)
    if not isinstance(student, fdl.Config):
        raise ConfigError("expected a NeMo pretraining recipe whose model has a config: recipe.model.config")
    teachers = [copy.deepcopy(teacher) for teacher in teachers]
    for teacher in teachers if loss is not None else []:
        teacher.loss = copy.deepcopy(loss)
    student.seq_length = data.seq_length
    distillation = run.Config(DistillationConfig, teachers=list(teachers))
    if balance is not None:
        distillation.balance = balance
    recipe.model = run.Config(CrossTokenizerDistillationModel, config=student, distillation=distillation)
    recipe.data = copy.deepcopy(data)
    _sum_gradients(recipe.trainer.strategy)
    callbacks = [run.Config(DistillationProgress)]
    if any(teacher.learn_projection for teacher in teachers):
        callbacks.append(run.Config(ProjectionSnapshots))
    recipe.trainer.callbacks = [*(recipe.trainer.callbacks or []), *callbacks]
    return recipe


def _sum_gradients(strategy: Any) -> None:
    if isinstance(strategy.ddp, fdl.Config):
        strategy.ddp.average_in_collective = False
