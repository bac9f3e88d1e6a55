"""The toy of the megatron-core tests, trained by NeMo: the same models, data and optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections.llm.gpt.model.base import GPTConfig, local_layer_spec
from nemo.lightning import io

from nemo_xtoken.config import ModelConfig, RunConfig
from nemo_xtoken.integrations.nemo import (
    CrossTokenizerDistillationModel,
    DistillationConfig,
    NemoTeacher,
    PreparedDataModule,
)
from nemo_xtoken.integrations.nemo.cpu_device import PLAIN_KERNELS
from nemo_xtoken.integrations.nemo.strategy import CpuMegatronStrategy

SAME_NAMES = ("name", "weight", "prepared_as", "learn_projection", "projection_lr")
"""Fields of a NemoTeacher that our own configs have as well."""


def gpt_config(model: ModelConfig, seq_length: int) -> GPTConfig:
    """NeMo's config of a model of our own configs."""
    return GPTConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        ffn_hidden_size=model.ffn_hidden_size,
        make_vocab_size_divisible_by=model.make_vocab_size_divisible_by,
        share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
        normalization=model.normalization,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
        init_method_std=model.init_method_std,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        seq_length=seq_length,
        transformer_layer_spec=local_layer_spec,
        **PLAIN_KERNELS,
    )


def student_model(config: RunConfig, *, teacher_checkpoint: str | None = None) -> CrossTokenizerDistillationModel:
    """The student of one of our runs, with the teacher's checkpoint and W that it has there."""
    teachers = [
        NemoTeacher(
            config=gpt_config(teacher.model, config.data.teacher_sequence_length),
            checkpoint=teacher_checkpoint or teacher.checkpoint,
            projection=teacher.projection,
            loss=teacher.loss,
            **{name: getattr(teacher, name) for name in SAME_NAMES},
        )
        for teacher in config.teachers
    ]
    distillation = DistillationConfig(teachers=teachers, balance=config.balance, initial_weights_seed=config.train.seed)
    return CrossTokenizerDistillationModel(
        gpt_config(config.student, config.data.student_sequence_length),
        distillation,
        optim=optimizer(config),
        tokenizer=data(config).tokenizer,
    )


def optimizer(config: RunConfig) -> nl.MegatronOptimizerModule:
    """The optimizer of one of our runs, without its schedule."""
    settings = config.optimizer
    return nl.MegatronOptimizerModule(
        config=OptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            adam_eps=settings.adam_eps,
            clip_grad=settings.clip_grad,
            use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        )
    )


def data(config: RunConfig, **changes: Any) -> PreparedDataModule:
    """The data of one of our runs."""
    return PreparedDataModule(
        config.data.path,
        seq_length=config.data.student_sequence_length,
        teacher_seq_length=config.data.teacher_sequence_length,
        micro_batch_size=config.train.micro_batch_size,
        global_batch_size=config.train.global_batch_size,
        validation_path=changes.pop("validation_path", None),
        seed=config.data.seed,
        teacher_lengths={entry.teacher: entry.sequence_length for entry in config.data.teacher_lengths},
        **changes,
    )


def trainer(config: RunConfig, callbacks: list[pl.Callback], **changes: Any) -> nl.Trainer:
    """A NeMo trainer with the layout of one of our runs."""
    parallel = config.parallel
    strategy = CpuMegatronStrategy(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        pipeline_dtype=torch.float32,
        ddp=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=parallel.use_distributed_optimizer
        ),
        ckpt_async_save=False,
    )
    settings = {
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        **changes,
    }
    return nl.Trainer(
        accelerator="cpu",
        devices=parallel.world_size,
        max_steps=config.train.steps,
        strategy=strategy,
        callbacks=callbacks,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        default_root_dir=config.run_dir,
        **settings,
    )


class Curve(pl.Callback, io.IOMixin):
    """Keeps what each training step reported."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.lines.append({**pl_module.run.means, "ratio": pl_module.run.kd_weight})

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.validation.append(dict(pl_module.run.means))


def run_folder(config: RunConfig) -> Path:
    """The run's directory, made."""
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    return Path(config.run_dir)
