"""Distillation recipes as nemo-run factories: named by models, complete but for data, checkpoints and nodes.

The settings of the paper (X-Token, arXiv 2605.21699): global batch 768, sequences of 4,096 tokens, AdamW with learning
rate 5e-5, weight decay 0.1 and betas 0.9 and 0.98, 4,000 steps of warm-up, cosine decay, clipping at 1.0, bf16. None of
those for GPUs has been run on one.
"""

from typing import Any, Literal, Optional

import nemo_run as run
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.collections.llm.gpt.model.base import GPTConfig, local_layer_spec
from nemo.collections.llm.gpt.model.llama import LlamaConfig
from nemo.collections.llm.gpt.model.qwen2 import Qwen2Config
from nemo.collections.llm.recipes.optim.adam import distributed_fused_adam_with_cosine_annealing

from nemo_xtoken.config import LossConfig
from nemo_xtoken.integrations.nemo.cli import distill
from nemo_xtoken.integrations.nemo.config import NemoTeacher
from nemo_xtoken.integrations.nemo.cpu_device import PLAIN_KERNELS
from nemo_xtoken.integrations.nemo.data import PreparedDataModule
from nemo_xtoken.integrations.nemo.extend import distill_recipe
from nemo_xtoken.integrations.nemo.phi4 import Phi4MiniConfig
from nemo_xtoken.integrations.nemo.precision import PRECISIONS
from nemo_xtoken.integrations.nemo.strategy import CpuMegatronStrategy
from nemo_xtoken.integrations.nemo.tiny import HUGGING_FACE_FOLDER, STUDENT, TinyDataModule

Precision = Literal["bf16", "fp8", "fp8_delayed", "fp8_blockwise", "mxfp8"]
GLOBAL_BATCH_SIZE, SEQ_LENGTH, STEPS = 768, 4096, 30_000
TEACHER_SEQ_LENGTH = 5120
"""A teacher may need more tokens for the same text: Qwen splits numbers into digits."""


@run.cli.factory(target=distill, target_arg="recipe")
def llama32_1b_from_qwen3_4b(
    dir: Optional[str] = None,
    data: str = "data/llama3_qwen3",
    student: Optional[str] = None,
    teacher: str = "checkpoints/qwen3_4b",
    num_nodes: int = 1,
    precision: Precision = "bf16",
) -> run.Partial:
    """Llama-3.2-1B from Qwen3-4B with P-KL: Qwen has no tokens for numbers of several digits. tp 2, dp 4 on a node."""
    qwen = _teacher(llm.Qwen3Config4B, teacher, "qwen3_4b", "p_kl")
    return _recipe(llm.llama32_1b, dir, data, student, [qwen], num_nodes, precision, tp=2, micro_batch=2)


@run.cli.factory(target=distill, target_arg="recipe")
def llama32_1b_from_phi4_mini(
    dir: Optional[str] = None,
    data: str = "data/llama3_phi4",
    student: Optional[str] = None,
    teacher: str = "checkpoints/phi4_mini",
    num_nodes: int = 1,
    precision: Precision = "bf16",
) -> run.Partial:
    """Llama-3.2-1B from Phi-4-mini with H-KL: both have tokens for numbers of up to three digits. tp 2, dp 4."""
    phi = _teacher(Phi4MiniConfig, teacher, "phi4_mini", "h_kl")
    recipe = _recipe(llm.llama32_1b, dir, data, student, [phi], num_nodes, precision, tp=2, micro_batch=2)
    recipe.data.teacher_seq_length = SEQ_LENGTH  # beyond 4,096 tokens Phi-4-mini stretches its positions
    return recipe


@run.cli.factory(target=distill, target_arg="recipe")
def llama32_1b_from_phi4_mini_and_llama32_3b(
    dir: Optional[str] = None,
    data: str = "data/llama3_phi4_llama3",
    student: Optional[str] = None,
    phi4_mini: str = "checkpoints/phi4_mini",
    llama32_3b: str = "checkpoints/llama32_3b",
    num_nodes: int = 1,
    precision: Precision = "bf16",
) -> run.Partial:
    """Llama-3.2-1B from Phi-4-mini with H-KL, weight 0.8, and from Llama-3.2-3B with its own tokenizer, weight 0.2."""
    phi = _teacher(Phi4MiniConfig, phi4_mini, "phi4_mini", "h_kl", weight=0.8)
    llama = _teacher(llm.Llama32Config3B, llama32_3b, "llama32_3b", "same_tokenizer", weight=0.2)
    recipe = _recipe(llm.llama32_1b, dir, data, student, [phi, llama], num_nodes, precision, tp=2, micro_batch=2)
    recipe.data.teacher_seq_length = SEQ_LENGTH
    return recipe


@run.cli.factory(target=distill, target_arg="recipe")
def nemotron_or_mistral_from_qwen3_32b(
    student_model: Literal["nemotron4_15b", "mistral_nemo_12b"] = "nemotron4_15b",
    dir: Optional[str] = None,
    data: str = "data/student_qwen3",
    student: Optional[str] = None,
    teacher: str = "checkpoints/qwen3_32b",
    num_nodes: int = 16,
    precision: Precision = "bf16",
) -> run.Partial:
    """Nemotron-4-15B or Mistral-NeMo-12B from Qwen3-32B with P-KL on many nodes: tp 8, pp 4, cp 2, the rest dp."""
    qwen = _teacher(llm.Qwen3Config32B, teacher, "qwen3_32b", "p_kl")
    base = getattr(llm, student_model)
    recipe = _recipe(base, dir, data, student, [qwen], num_nodes, precision, tp=8, micro_batch=1)
    strategy = recipe.trainer.strategy
    strategy.pipeline_model_parallel_size, strategy.pipeline_dtype = 4, torch.bfloat16
    strategy.context_parallel_size = 2
    recipe.optim.config.lr = 2e-5
    return recipe


@run.cli.factory(target=distill, target_arg="recipe")
def tiny_cpu(dir: str = "tiny_cpu", tp: int = 1, max_steps: int = 20) -> run.Partial:
    """A student of 36,000 parameters and a teacher with random weights on this machine's CPU, in a minute."""
    student = _tiny(LlamaConfig, seq_length=32, **STUDENT)
    teacher = _tiny(
        Qwen2Config,
        seq_length=48,
        num_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        num_query_groups=2,
        ffn_hidden_size=32,
        layernorm_epsilon=1e-5,
        rotary_base=10000,
        vocab_size=None,
    )
    plain = run.Partial(
        llm.train,
        model=run.Config(llm.LlamaModel, config=student),
        trainer=_cpu_trainer(dir, tp, max_steps),
        data=None,
        log=run.Config(
            nl.NeMoLogger,
            explicit_log_dir=dir,
            ckpt=run.Config(
                nl.ModelCheckpoint, every_n_train_steps=10, save_last=True, save_top_k=1, save_optim_on_train_end=True
            ),
        ),
        optim=run.Config(
            nl.MegatronOptimizerModule,
            config=run.Config(OptimizerConfig, optimizer="adam", lr=5e-3, clip_grad=0.5, adam_beta2=0.98),
        ),
        resume=run.Config(nl.AutoResume, resume_if_exists=True, resume_ignore_no_checkpoint=True),
        tokenizer="data",
    )
    data = run.Config(TinyDataModule, folder=dir, seq_length=32)
    recipe = distill_recipe(plain, [run.Config(NemoTeacher, config=teacher, seed=7)], data)
    recipe.model.distillation.initial_weights_seed = 1234
    recipe.model.distillation.huggingface = f"{dir}/{HUGGING_FACE_FOLDER}"
    return recipe


def _teacher(config: Any, checkpoint: str, name: str, mode: str, weight: float = 1.0) -> run.Config[NemoTeacher]:
    loss = run.Config(LossConfig, mode=mode, teacher_top_k=8192 if mode == "p_kl" else None)
    return run.Config(
        NemoTeacher, config=run.Config(config), checkpoint=checkpoint, name=name, loss=loss, weight=weight
    )


def _recipe(
    base: Any,
    dir: Optional[str],
    data: str,
    student: Optional[str],
    teachers: list[run.Config[NemoTeacher]],
    num_nodes: int,
    precision: Precision,
    *,
    tp: int,
    micro_batch: int,
) -> run.Partial:
    """NeMo's own pretraining recipe of the student with the paper's settings."""
    recipe = base.pretrain_recipe(dir=dir, name="distill", num_nodes=num_nodes, num_gpus_per_node=8)
    recipe.trainer.plugins = PRECISIONS[precision]()
    recipe.trainer.max_steps = STEPS
    strategy = recipe.trainer.strategy
    strategy.tensor_model_parallel_size, strategy.sequence_parallel = tp, tp > 1
    strategy.pipeline_model_parallel_size, strategy.pipeline_dtype = 1, None
    strategy.virtual_pipeline_model_parallel_size, strategy.context_parallel_size = None, 1
    recipe.optim = _paper_optimizer()
    if student is not None:
        recipe.resume.restore_config = run.Config(nl.RestoreConfig, path=student)
    prepared = run.Config(
        PreparedDataModule,
        path=data,
        seq_length=SEQ_LENGTH,
        teacher_seq_length=TEACHER_SEQ_LENGTH,
        micro_batch_size=micro_batch,
        global_batch_size=GLOBAL_BATCH_SIZE,
        num_workers=4,
    )
    return distill_recipe(recipe, teachers, prepared)


def _paper_optimizer() -> run.Config:
    optimizer = distributed_fused_adam_with_cosine_annealing(
        max_lr=5e-5, min_lr=0.0, warmup_steps=4000, adam_beta1=0.9, adam_beta2=0.98, clip_grad=1.0
    )
    optimizer.config.adam_eps = 1e-8
    return optimizer


def _tiny(config: type[GPTConfig], **fields: Any) -> run.Config[GPTConfig]:
    return run.Config(
        config,
        **fields,
        make_vocab_size_divisible_by=8,
        share_embeddings_and_output_weights=False,
        transformer_layer_spec=local_layer_spec,
        **PLAIN_KERNELS,
    )


def _cpu_trainer(dir: str, tp: int, max_steps: int) -> run.Config[nl.Trainer]:
    strategy = run.Config(
        CpuMegatronStrategy,
        tensor_model_parallel_size=tp,
        pipeline_dtype=torch.float32,
        ddp=run.Config(DistributedDataParallelConfig, grad_reduce_in_fp32=True),
        ckpt_async_save=False,
    )
    return run.Config(
        nl.Trainer,
        accelerator="cpu",
        devices=tp,
        max_steps=max_steps,
        strategy=strategy,
        default_root_dir=dir,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[],
    )
