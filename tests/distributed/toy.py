"""Prepared data, W and run configs for the training tests: bytes teach a tokenizer that has numbers of two digits."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_xtoken import tokenizers
from nemo_xtoken.config import (
    BalanceConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)
from nemo_xtoken.data import prepare
from nemo_xtoken.projection import build

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemo_xtoken.teachers import Teacher

STUDENT = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48)
TEACHER = ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=2, num_query_groups=2, ffn_hidden_size=32)
TRAIN = TrainConfig(steps=6, micro_batch_size=2, global_batch_size=8, checkpoint_interval=2)


def student_spec(folder: Path) -> str:
    """A rank file of the 256 bytes and of two thirds of the numbers of two digits."""
    path = folder / "pairs.tiktoken"
    pieces = [bytes([value]) for value in range(256)] + [f"{i:02d}".encode() for i in range(100) if i % 3]
    lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))
    path.write_text("".join(lines), encoding="utf-8")
    return f"{path}?pattern=gpt2"


def sums(count: int, seed: int) -> list[tuple[str, str]]:
    """Sums as prompts and answers."""
    rng = random.Random(seed)
    pairs = [(rng.randrange(100), rng.randrange(100)) for _ in range(count)]
    return [(f"{a}+{b}=", str(a + b)) for a, b in pairs]


def make_data(folder: Path) -> None:
    """Under `folder`: prepared data of the pair, held-out data, that of the teacher alone, and W."""
    student, teacher = tokenizers.load(student_spec(folder)), tokenizers.load("bytes")
    for name, count in (("sums", 400), ("held_out", 60)):
        documents = [json.dumps({"text": prompt + answer}) + "\n" for prompt, answer in sums(count, seed=count)]
        (folder / f"{name}.jsonl").write_text("".join(documents), encoding="utf-8")
    prepare([folder / "sums.jsonl"], folder / "pair", student, teacher)
    prepare([folder / "held_out.jsonl"], folder / "held_out", student, teacher)
    prepare([folder / "sums.jsonl"], folder / "teacher_alone", teacher, None)
    build(student, teacher).save(folder / "projection.safetensors")


def teacher_run(folder: Path) -> RunConfig:
    """Cross-entropy training of the teacher."""
    train = replace(TRAIN, steps=40, checkpoint_interval=0)
    config = student_run(folder, "teacher_run", train=train)
    optimizer = replace(config.optimizer, lr=3e-2)
    data = data_config(folder, "teacher_alone", None)
    return replace(config, student=TEACHER, teachers=(), data=data, optimizer=optimizer)


def student_run(
    folder: Path,
    name: str = "student_run",
    *,
    train: TrainConfig = TRAIN,
    parallel: ParallelConfig | None = None,
    balance: BalanceConfig | None = None,
) -> RunConfig:
    """Distillation of the toy teacher, whose run has to be there."""
    teacher = TeacherConfig(
        model=TEACHER, checkpoint=str(folder / "teacher_run"), projection=str(folder / "projection.safetensors")
    )
    return RunConfig(
        run_dir=str(folder / name),
        student=STUDENT,
        teachers=(teacher,),
        data=data_config(folder, "pair", "held_out"),
        balance=balance or BalanceConfig(),
        parallel=parallel or ParallelConfig(),
        optimizer=OptimizerConfig(lr=5e-3, min_lr=5e-4, lr_warmup_steps=2, clip_grad=0.5),
        train=train,
        device="cpu",
    )


def model_of(teacher: Teacher) -> GPTModel:
    """The model of a colocated teacher."""
    from nemo_xtoken.integrations.megatron.teacher import ColocatedSource  # train_toy's ranks import megatron later

    assert isinstance(teacher.source, ColocatedSource)
    return teacher.source.model


def metrics(config: RunConfig) -> list[dict[str, float]]:
    """The lines of a run's metrics, without its timings and memory."""
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timings = {"seconds", "tokens_per_second", "memory_mib"}
    return [{name: value for name, value in json.loads(line).items() if name not in timings} for line in lines]


def data_config(folder: Path, name: str, validation: str | None = None) -> DataConfig:
    """Prepared data under `folder`, packed so that samples hold several documents."""
    return DataConfig(
        path=str(folder / name),
        validation_path=None if validation is None else str(folder / validation),
        student_sequence_length=32,
        teacher_sequence_length=48,
    )
