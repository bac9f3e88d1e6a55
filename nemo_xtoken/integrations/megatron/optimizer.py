"""Megatron's data-parallel wrapper, optimizer and learning rate schedule, from the run's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_xtoken.config import OptimizerConfig, RunConfig
from nemo_xtoken.errors import ConfigError

C = TypeVar("C")


def wrap_data_parallel(model: GPTModel, config: RunConfig) -> DistributedDataParallel:
    """The model with fp32 gradients that are summed, not averaged, over dp: the loss divides by global counts."""
    ddp_config = _known(
        DistributedDataParallelConfig,
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        average_in_collective=False,
    )
    wrapped = DistributedDataParallel(config=model.config, ddp_config=ddp_config, module=model)
    wrapped.broadcast_params()
    return wrapped


def build_optimizer(models: Sequence[DistributedDataParallel], config: RunConfig) -> MegatronOptimizer:
    """Megatron's AdamW, with apex's or Transformer Engine's fused kernel where present; the schedule is told of it."""
    settings = config.optimizer
    optimizer_config = _known(
        MegatronOptimizerConfig,
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=settings.clip_grad,
        bf16=config.train.bf16,
        params_dtype=torch.bfloat16 if config.train.bf16 else torch.float32,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
    )
    optimizer = get_megatron_optimizer(
        config=optimizer_config, model_chunks=list(models), use_gloo_process_groups=False
    )
    for model in models:
        model.config.grad_scale_func = optimizer.scale_loss
        model.config.finalize_model_grads_func = finalize_model_grads
    return optimizer


def build_schedule(optimizer: MegatronOptimizer, settings: OptimizerConfig, steps: int) -> OptimizerParamScheduler:
    """Linear warm-up from zero, then the decay to `min_lr` at the last step. Stepped by 1 before the optimizer is."""
    if settings.lr_warmup_steps >= steps:
        raise ConfigError(f"optimizer.lr_warmup_steps {settings.lr_warmup_steps} must be less than train.steps {steps}")
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.lr_warmup_steps,
        lr_decay_steps=steps,
        lr_decay_style=settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def _known(kind: type[C], **values: Any) -> C:
    """An object of a Megatron dataclass; fields that the installed version does not have are left out."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names})
