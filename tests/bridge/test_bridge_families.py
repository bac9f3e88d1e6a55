"""Other families inside Bridge: imported, Gemma, Mistral, Nemotron and Phi distilled and exported, what is refused."""

# pyright: reportMissingImports=false
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nemo_xtoken.errors import ConfigError, XTokenError
from nemo_xtoken.integrations.bridge import gemma3, models
from nemo_xtoken.integrations.bridge.config import BridgeTeacher
from nemo_xtoken.integrations.bridge.export import export
from nemo_xtoken.integrations.bridge.limits import refuse_teacher
from tests.bridge import families, own_loop, tiny
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

Lines = list[dict[str, float]]
STEPS = 3
TOKENS = torch.arange(3, 27).view(1, -1)
STUDENTS = ("gemma", "gemma3", "mistral", "nemotron", "phi")

IMPORTED = [
    ("gemma", 2),
    ("gemma3", 1),
    ("gemma3", 2),
    ("mistral", 2),
    ("nemotron", 1),
    ("nemotron", 2),
    ("qwen2", 1),
    ("qwen3", 2),
]


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """Under `folder`: `student-KIND` with the tokenizer of `llama`, `teacher-KIND` with that of `qwen3`."""
    for kind in families.CONFIGS:
        families.make(folder / f"student-{kind}", kind, 336, folder / "llama")
        families.make(folder / f"teacher-{kind}", kind, 304, folder / "qwen3")
    return folder


def imported_logits(path: Path, tp: int) -> torch.Tensor:
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
    model_parallel_cuda_manual_seed(1)
    provider = models.provider_from(str(path))
    provider.params_dtype, provider.bf16, provider.fp16 = torch.float32, False, False
    provider.tensor_model_parallel_size, provider.pipeline_dtype = tp, torch.float32
    models.adapt(provider, torch.device("cpu"))
    provider.finalize()
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)
    model.eval()
    with torch.no_grad():
        return gather_from_tensor_model_parallel_region(model(TOKENS, torch.arange(24)[None], None))


def logits_of(path: Path, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens).logits


@pytest.mark.parametrize(("kind", "tp"), IMPORTED)
def test_an_imported_model_has_the_logits_of_transformers(made: Path, kind: str, tp: int) -> None:
    found = run_ranks(tp, imported_logits, made / f"student-{kind}", tp, timeout=150)
    for logits in found:
        torch.testing.assert_close(logits, logits_of(made / f"student-{kind}"), rtol=1e-5, atol=1e-5)


def test_a_window_of_another_length_gives_other_logits(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gemma3.outside_window
    monkeypatch.setattr(gemma3, "outside_window", lambda length, window, device: right(length, window + 1, device))
    (logits,) = run_ranks(1, imported_logits, made / "student-gemma3", 1, timeout=150)
    assert (logits - logits_of(made / "student-gemma3")).abs().max() > 1e-3


def own_curve(made: Path, student: str) -> Lines:
    teacher = BridgeTeacher(model=str(made / "qwen3"), projection=str(made / "projection.safetensors"))
    return own_loop.curve(made, STEPS, [teacher], family=student)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_student_is_distilled_in_every_layout_and_exported(made: Path, kind: str) -> None:
    student, name = f"student-{kind}", f"{kind}_alone"
    alone = tiny.run(made, name, steps=STEPS, student=student)
    assert_same(alone, run_ranks(1, own_curve, made, student, timeout=150)[0])
    for layout in ({"tp": 2}, {"pp": 2}):
        assert_same(tiny.run(made, f"{kind}_{next(iter(layout))}2", steps=STEPS, student=student, **layout), alone)
    out = made / f"{kind}_exported"
    run_ranks(1, export, made / name, str(made / student), out, timeout=150)
    expected = run_ranks(1, tiny.logits_of_checkpoint, made, name, TOKENS, STEPS, student, timeout=150)[0]
    torch.testing.assert_close(logits_of(out), expected[..., :336], rtol=1e-5, atol=1e-5)
    assert (logits_of(out) - logits_of(made / student)).abs().max() > 0.01


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_teacher_gives_the_curve_of_our_own_loop(made: Path, kind: str) -> None:
    teacher = BridgeTeacher(model=str(made / f"teacher-{kind}"), projection=str(made / "projection.safetensors"))
    own = run_ranks(1, own_loop.curve, made, STEPS, [teacher], timeout=150)[0]
    assert_same(tiny.run(made, f"from_{kind}", steps=STEPS, teacher=f"teacher-{kind}", tp=2), own)


def assert_same(lines: Lines, expected: Lines) -> None:
    assert len(lines) == len(expected) == STEPS
    for line, other in zip(lines, expected, strict=True):
        for name in ("loss", "ce", "kd", "grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-5), name


def test_gemma_2_is_refused(made: Path) -> None:
    with pytest.raises(ConfigError, match="a student of Gemma 2's architecture does not work"):
        tiny.config(made, "gemma2", student="student-gemma2")
    gemma2: Any = models.provider_from(str(made / "teacher-gemma2"))
    with pytest.raises(ConfigError, match="teacher 'gemma2' is of Gemma 2's architecture"):
        refuse_teacher("gemma2", gemma2, models.provider_from(str(made / "llama")))


@pytest.mark.parametrize("tp", [1, 2])
def test_a_student_whose_documents_start_with_zeros_is_refused(made: Path, tp: int) -> None:
    with pytest.raises(ConfigError, match="expected an embedding for token 0, which starts documents"):
        tiny.run(made, "zeros", student=with_zeros(made), tp=tp)


def test_a_gradient_that_is_not_a_number_ends_the_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_xtoken.integrations.bridge.step.check_first_token", lambda *_: None)
    with pytest.raises(XTokenError, match="the gradient's norm is inf at step 1"):
        tiny.run(made, "inf", student=with_zeros(made))


def with_zeros(made: Path) -> str:
    """Gemma 3 as transformers makes it when its padding is the first token of documents."""
    folder = made / "zeros-gemma3"
    if not folder.exists():
        shutil.copytree(made / "student-gemma3", folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.embed_tokens.weight"][0] = 0
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder.name


def test_a_window_on_the_cpu_or_over_ranks_is_refused(made: Path) -> None:
    student: Any = models.provider_from(str(made / "llama"))
    student.window_size, student.seq_length = (16, 0), 32
    models.adapt(student, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"attention in a window of \(16, 0\) tokens does not work on the CPU"):
        models.local_layers(student)
    student.seq_length = 16
    models.adapt(student, torch.device("cpu"))
    models.local_layers(student)
    teacher: Any = models.provider_from(str(made / "teacher-gemma3"))
    teacher.context_parallel_size = student.context_parallel_size = 2
    with pytest.raises(ConfigError, match="attention in a window does not work with context parallelism"):
        refuse_teacher("gemma3", teacher, student)


def test_a_weight_that_the_conversion_does_not_know_is_one_clear_error(made: Path) -> None:
    def on_rank() -> None:
        provider: Any = models.provider_from(str(made / "llama"))

        def add_weight(built: list[Any]) -> list[Any]:
            built[0].decoder.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
            return built

        provider.register_pre_wrap_hook(add_weight, prepend=True)
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
        models.adapt(provider, torch.device("cpu"))
        provider.finalize()
        provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)

    with pytest.raises(ConfigError, match=r"does not know the weight decoder\.extra"):
        run_ranks(1, on_rank, timeout=150)
