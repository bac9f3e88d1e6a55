"""Hugging Face models in and out: imported student and teachers, a distillation of them, and its export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from torch._C._distributed_c10d import HashStore
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from nemo_xtoken.errors import CheckpointError, ConfigError, UnavailableError
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.student import unwrap
from nemo_xtoken.integrations.nemo import (
    CrossTokenizerDistillationModel,
    DistillationConfig,
    NemoTeacher,
    PreparedDataModule,
    config_of,
)
from nemo_xtoken.integrations.nemo.phi4 import Phi4MiniConfig
from tests import tiny_huggingface
from tests.distributed import toy
from tests.nemo import toy as nemo_toy
from tests.nemo.nemo_ranks import rendezvous, run_nemo_ranks

pytestmark = pytest.mark.timeout(240)

TOKENS = torch.arange(3, 27).view(1, -1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, data of a pair, and NeMo checkpoints of two of them."""
    folder = tmp_path_factory.mktemp("huggingface")
    tiny_huggingface.make_all(folder)
    phi = Phi3Config(
        vocab_size=304,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        partial_rotary_factor=0.75,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    Phi3ForCausalLM(phi).save_pretrained(folder / "phi")
    AutoTokenizer.from_pretrained(folder / "qwen3").save_pretrained(folder / "phi")
    for name in ("llama", "qwen3"):
        run_nemo_ranks(1, take_in, folder, name)
    return folder


def take_in(folder: Path, name: str) -> None:
    model = CrossTokenizerDistillationModel(config_of(str(folder / name)))
    llm.import_ckpt(model, f"hf://{folder / name}", folder / f"{name}-nemo")
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)  # the import has ended its own


def distillation(folder: Path, teacher: NemoTeacher, **settings: Any) -> CrossTokenizerDistillationModel:
    """The imported student's model type, in fp32 and with plain kernels."""
    config = config_of(str(folder / "llama"))
    config.seq_length = 32
    optimizer = nl.MegatronOptimizerModule(config=OptimizerConfig(optimizer="adam", lr=5e-3))
    return CrossTokenizerDistillationModel(config, DistillationConfig(teachers=[teacher], **settings), optim=optimizer)


def run(folder: Path, out: Path, teacher: NemoTeacher, steps: int) -> tuple[list[dict[str, float]], torch.Tensor, Any]:
    """Distil from the imported weights by `llm.train`; the curve, and the logits of student and teacher."""
    config = replace(toy.student_run(out, "run", train=replace(toy.TRAIN, steps=steps)), run_dir=str(out))
    out.mkdir(exist_ok=True)
    curve = nemo_toy.Curve()
    trainer = nemo_toy.trainer(config, [curve], enable_checkpointing=True)
    trainer.strategy.store = rendezvous()
    data = PreparedDataModule(
        str(folder / "data"), seq_length=32, teacher_seq_length=48, micro_batch_size=2, global_batch_size=8
    )
    model = distillation(folder, teacher, huggingface=str(folder / "llama"))
    llm.train(
        model=model,
        data=data,
        trainer=trainer,
        log=nl.NeMoLogger(explicit_log_dir=str(out), ckpt=nl.ModelCheckpoint(save_last=True, save_top_k=0)),
        resume=nl.AutoResume(restore_config=nl.RestoreConfig(path=str(folder / "llama-nemo"))),
        tokenizer="data",
    )
    source: Any = model.run.objective.teachers[0].source
    teacher_logits = logits(source.model)
    return curve.lines, logits(unwrap(model)), teacher_logits


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """[1, s, V]; a tapped model hands out hidden states."""
    model.eval()
    hidden = model(TOKENS, torch.arange(TOKENS.shape[1])[None], None)
    return hidden @ head_weight(model).t()


@torch.no_grad()
def huggingface_logits(path: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(path).eval()(TOKENS).logits


@pytest.fixture(scope="module")
def distilled(folder: Path) -> tuple[list[dict[str, float]], torch.Tensor, torch.Tensor]:
    """Ten steps from the imported Qwen3."""
    teacher = NemoTeacher(checkpoint=str(folder / "qwen3-nemo"), projection=str(folder / "projection.safetensors"))
    return run_nemo_ranks(1, run, folder, folder / "distilled", teacher, 10)[0]


def last_checkpoint(out: Path) -> Path:
    (path,) = (out / "checkpoints").glob("*-last")
    return path


def test_an_imported_student_is_distilled_from_an_imported_teacher(
    folder: Path, distilled: tuple[list[dict[str, float]], torch.Tensor, torch.Tensor]
) -> None:
    curve, _, teacher_logits = distilled
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert curve[-1]["kd"] < 0.9 * curve[0]["kd"]
    wanted = huggingface_logits(folder / "qwen3")
    assert teacher_logits[..., :304] == pytest.approx(wanted, abs=1e-5 * float(wanted.abs().max()))


def test_the_exported_student_is_the_student_and_no_teacher(
    folder: Path, distilled: tuple[list[dict[str, float]], torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    _, student_logits, _ = distilled
    llm.export_ckpt(last_checkpoint(folder / "distilled"), "hf", tmp_path / "exported")
    exported = huggingface_logits(tmp_path / "exported")
    assert exported.numpy() == pytest.approx(student_logits[..., :336].numpy(), abs=1e-5)
    before = huggingface_logits(folder / "llama")
    assert (exported - before).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert tokenizer("1+22=23").input_ids == AutoTokenizer.from_pretrained(folder / "llama")("1+22=23").input_ids
    assert (tmp_path / "exported/distillation/io.json").is_file()
    assert not [path for path in (tmp_path / "exported").rglob("*") if "teacher" in path.name]


@pytest.mark.parametrize("name", ["qwen2", "phi"])
def test_other_teachers_are_imported_as_they_are(folder: Path, name: str, tmp_path: Path) -> None:
    run_nemo_ranks(1, take_in, folder, name)
    (teacher_logits,) = run_nemo_ranks(1, teacher_logits_of, folder, tmp_path / name, name)
    wanted = huggingface_logits(folder / name)
    assert teacher_logits[..., :304].numpy() == pytest.approx(wanted.numpy(), abs=1e-5 * float(wanted.abs().max()))


def teacher_logits_of(folder: Path, out: Path, name: str) -> torch.Tensor:
    teacher = NemoTeacher(checkpoint=str(folder / f"{name}-nemo"), projection=str(folder / "projection.safetensors"))
    return run(folder, out, teacher, steps=1)[2]


def test_what_can_not_be_exported_or_imported_says_so(
    folder: Path, distilled: tuple[list[dict[str, float]], torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = last_checkpoint(folder / "distilled")
    with pytest.raises(CheckpointError, match="do not belong together"):
        llm.export_ckpt(checkpoint, "hf", tmp_path / "other", source=str(folder / "qwen2"))
    with pytest.raises(UnavailableError, match="no conversion of Phi3ForCausalLM"):
        llm.export_ckpt(checkpoint, "hf", tmp_path / "phi", source=str(folder / "phi"))
    with pytest.raises(ConfigError, match="beyond 4096 tokens, got sequences of 5120"):
        Phi4MiniConfig(seq_length=5120)
    with pytest.raises(CheckpointError, match="expected a NeMo checkpoint with its context"):
        run_nemo_ranks(1, run, folder, tmp_path / "none", NemoTeacher(checkpoint=str(tmp_path)), 1)
