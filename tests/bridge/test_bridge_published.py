"""Whole published tokenizers, Llama 3.1's and Qwen 3's, on tiny models: the curve of our own loop, and the export."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_xtoken import tokenizers
from nemo_xtoken.config import ModelConfig
from nemo_xtoken.integrations.bridge.config import BridgeTeacher
from nemo_xtoken.integrations.bridge.export import export
from tests import tiny_huggingface
from tests.bridge import own_loop, tiny
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(580)

STEPS = 4
STUDENT = ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=24)
TEXT = "In 2024 the bakery sold 1288 loaves: 17+25=42."


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, model_tokenizers: Path) -> Path:
    """Models, data and W of both vocabularies, whole."""
    folder = tmp_path_factory.mktemp("published")
    tiny_huggingface.make_published(folder, model_tokenizers)
    (folder / "held_out").symlink_to(folder / "data")
    return folder


def test_the_curve_is_that_of_our_own_loop_in_every_layout_and_the_student_goes_back(published: Path) -> None:
    teacher = BridgeTeacher(model=str(published / "qwen3"), projection=str(published / "projection.safetensors"))
    own = run_ranks(1, own_loop.curve, published, STEPS, [teacher], STUDENT, timeout=240)[0]
    assert own[-1]["loss"] < own[0]["loss"]
    for layout in ({"tp": 1}, {"tp": 2}):
        lines = tiny.run(published, f"tp{layout['tp']}", steps=STEPS, **layout)
        assert len(lines) == STEPS
        for line, other in zip(lines, own, strict=True):
            for name in ("loss", "ce", "kd", "teacher_entropy"):
                assert line[name] == pytest.approx(other[name], rel=1e-5), (layout, name)
            # A CPU's norm of the two million values of a head is 7e-5 off, of half as many 3e-5.
            assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5 if layout["tp"] == 1 else 1e-4)
    run_ranks(1, export, published / "tp2", str(published / "llama"), published / "exported", timeout=150)
    tokenizer = AutoTokenizer.from_pretrained(published / "exported")
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert ids == list(tokenizers.load(str(published / "llama")).encode(TEXT).ids)
    tokens = torch.tensor([ids])
    expected = run_ranks(1, tiny.logits_of_checkpoint, published, "tp2", tokens, STEPS, timeout=150)[0]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(published / "exported")(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
