"""Hugging Face models in and out: imported student and teachers, a distillation of them, and its export."""

from __future__ import annotations

import shutil
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.data import PreparedData
from nemo_xtoken.errors import CheckpointError, ConfigError, UnavailableError
from nemo_xtoken.integrations.megatron import layout as layouts
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
from nemo_xtoken.integrations.nemo.teachers import build_teacher
from tests import tiny_huggingface
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.nemo import toy as nemo_toy
from tests.nemo.nemo_ranks import rendezvous, run_nemo_ranks

pytestmark = pytest.mark.timeout(240)

TOKENS = torch.arange(3, 27).view(1, -1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_tokenizers: Path) -> Path:
    """A Llama with Llama 3.1's tokenizer and a Qwen3 with Qwen 3's, whole, their data, and NeMo checkpoints of both."""
    folder = tmp_path_factory.mktemp("huggingface")
    tiny_huggingface.make_published(folder, model_tokenizers)
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
    """Twenty steps from the imported Qwen3: 128,256 and 151,936 rows, all columns compared."""
    teacher = NemoTeacher(checkpoint=str(folder / "qwen3-nemo"), projection=str(folder / "projection.safetensors"))
    return run_nemo_ranks(1, run, folder, folder / "distilled", teacher, 20)[0]


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
    assert teacher_logits[..., :151936].numpy() == pytest.approx(wanted.numpy(), abs=1e-5 * float(wanted.abs().max()))


def test_the_exported_student_is_the_student_and_no_teacher(
    folder: Path, distilled: tuple[list[dict[str, float]], torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    _, student_logits, _ = distilled
    llm.export_ckpt(last_checkpoint(folder / "distilled"), "hf", tmp_path / "exported")
    exported = huggingface_logits(tmp_path / "exported")
    assert exported.numpy() == pytest.approx(student_logits[..., :128256].numpy(), abs=1e-5)
    before = huggingface_logits(folder / "llama")
    assert (exported - before).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    ids = AutoTokenizer.from_pretrained(folder / "llama")("1+22=23").input_ids
    assert tokenizer("1+22=23").input_ids == ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|begin_of_text|>", "1", "+", "22", "=", "23"]
    assert (tmp_path / "exported/distillation/io.json").is_file()
    assert not [path for path in (tmp_path / "exported").rglob("*") if "teacher" in path.name]


OTHERS = {
    "qwen2": lambda shape: Qwen2ForCausalLM(Qwen2Config(**shape)),
    "mistral": lambda shape: MistralForCausalLM(MistralConfig(**shape, sliding_window=None, head_dim=8)),
    "mistral-window": lambda shape: MistralForCausalLM(MistralConfig(**shape, sliding_window=32)),
    "nemotron": lambda shape: NemotronForCausalLM(NemotronConfig(**shape, partial_rotary_factor=0.5)),
    "phi": lambda shape: Phi3ForCausalLM(Phi3Config(**{**shape, **PHI})),
}
PHI = {
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_imported_as_they_are_and_students_exported(folder: Path, name: str, tmp_path: Path) -> None:
    """Mistral and Nemotron are students of the recipe for many nodes; Phi-4-mini is a teacher only."""
    torch.manual_seed(3)
    shape = {"vocab_size": 304, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    model = OTHERS[name]({**tiny_huggingface.SHAPE, **shape, "max_position_embeddings": 256})
    with torch.no_grad():
        for norm in (module for module in model.modules() if "norm" in type(module).__name__.lower()):
            for parameter in norm.parameters():
                parameter += 0.3 * torch.randn_like(parameter)  # what leaves a norm's weights out shows
    model.save_pretrained(tmp_path / name)
    for file in (folder / "qwen3").glob("tokenizer*"):
        shutil.copy(file, tmp_path / name)
    run_nemo_ranks(1, take_in, tmp_path, name)
    (found,) = run_ranks(1, logits_of_imported, folder, tmp_path / f"{name}-nemo")
    wanted = huggingface_logits(tmp_path / name)
    assert found[..., :304].numpy() == pytest.approx(wanted.numpy(), abs=1e-5 * float(wanted.abs().max()))
    if name != "phi":
        llm.export_ckpt(tmp_path / f"{name}-nemo", "hf", tmp_path / "exported", source=str(tmp_path / name))
        assert (huggingface_logits(tmp_path / "exported") == wanted).all()


def logits_of_imported(folder: Path, checkpoint: Path) -> torch.Tensor:
    """[1, s, V] by megatron-core."""
    layout = layouts.start(ParallelConfig(), "cpu", seed=1)
    side = PreparedData.open(str(folder / "data")).manifest.student
    student = nemo_toy.gpt_config(toy.STUDENT, 32)
    model = build_teacher(NemoTeacher(checkpoint=str(checkpoint)), layout, student=student, side=side, seq_length=32)
    return logits(model)


def test_what_can_not_be_exported_or_imported_says_so(
    folder: Path, distilled: tuple[list[dict[str, float]], torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = last_checkpoint(folder / "distilled")
    shape = {**tiny_huggingface.SHAPE, "vocab_size": 304, "hidden_size": 32, "num_hidden_layers": 3}
    Qwen2Config(**shape, architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path / "qwen2")
    Phi3Config(**shape, pad_token_id=0, architectures=["Phi3ForCausalLM"]).save_pretrained(tmp_path / "phi")
    with pytest.raises(CheckpointError, match="do not belong together"):
        llm.export_ckpt(checkpoint, "hf", tmp_path / "other", source=str(tmp_path / "qwen2"))
    with pytest.raises(UnavailableError, match="no conversion of Phi3ForCausalLM"):
        llm.export_ckpt(checkpoint, "hf", tmp_path / "none", source=str(tmp_path / "phi"))
    with pytest.raises(ConfigError, match="beyond 4096 tokens, got sequences of 5120"):
        Phi4MiniConfig(seq_length=5120)
    with pytest.raises(CheckpointError, match="expected a NeMo checkpoint with its context"):
        run_nemo_ranks(1, run, folder, tmp_path / "none", NemoTeacher(checkpoint=str(tmp_path)), 1)
