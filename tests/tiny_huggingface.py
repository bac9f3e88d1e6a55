"""Tiny Hugging Face models with random weights, with small tokenizers or published ones, and data for both."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nemo_xtoken import tokenizers
from nemo_xtoken.data import prepare
from nemo_xtoken.projection import build
from tests.distributed import toy
from tests.small_tokenizers import SENTENCES

SHAPE: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}


def make_published(folder: Path, tokenizer_files: Path) -> None:
    """Under `folder`: `llama` with Llama 3.1's tokenizer and `qwen3` with Qwen 3's, prepared data `data`, and W.

    Their vocabularies are whole, so nearly all of the weights are embeddings and heads. `tokenizer_files` has a folder
    for each tokenizer, as the fixture `model_tokenizers` has.
    """
    torch.manual_seed(2)
    student = {"vocab_size": 128256, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    teacher = {"vocab_size": 151936, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    LlamaForCausalLM(LlamaConfig(**student, **SHAPE)).save_pretrained(folder / "llama")
    _save_teacher(Qwen3ForCausalLM(Qwen3Config(**teacher, **SHAPE)), folder / "qwen3")
    for name, published in (("llama", "llama3_1"), ("qwen3", "qwen3")):
        for path in (tokenizer_files / published).iterdir():
            shutil.copy(path, folder / name)
    of_student, of_teacher = (tokenizers.load(str(folder / name)) for name in ("llama", "qwen3"))
    _write_text(folder / "data.jsonl", 200)
    prepare([folder / "data.jsonl"], folder / "data", of_student, of_teacher)
    build(of_student, of_teacher).save(folder / "projection.safetensors")


def make_all(folder: Path) -> None:
    """Under `folder`: models with tokenizers, prepared data `data` and `held_out`, and W; also of several teachers.

    `llama` and, with tied embeddings, `tied` are students, `qwen3` and `qwen2` teachers.
    """
    text = [prompt + answer for prompt, answer in toy.sums(400, seed=1)] + SENTENCES[:5]
    _save_tokenizer(folder / "llama", text, vocab_size=330, split_digits=False)
    _save_tokenizer(folder / "qwen3", text, vocab_size=300, split_digits=True)
    _save_tokenizer(folder / "qwen2", text, vocab_size=300, split_digits=True)
    torch.manual_seed(1)
    student = {"vocab_size": 336, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    teacher = {"vocab_size": 304, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 8}
    LlamaForCausalLM(LlamaConfig(**student, **SHAPE)).save_pretrained(folder / "llama")
    tied = {**SHAPE, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**student, **tied)).save_pretrained(folder / "tied")
    _save_teacher(Qwen3ForCausalLM(Qwen3Config(**teacher, **SHAPE)), folder / "qwen3")
    del teacher["head_dim"]
    _save_teacher(Qwen2ForCausalLM(Qwen2Config(**teacher, **SHAPE)), folder / "qwen2")
    _make_data(folder)


def _save_teacher(model: Any, folder: Path) -> None:
    with torch.no_grad():
        model.lm_head.weight *= 8  # it has opinions
    model.save_pretrained(folder)


def _save_tokenizer(folder: Path, text: list[str], *, vocab_size: int, split_digits: bool) -> None:
    library = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    library.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_of])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(text, trainer)
    PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def _make_data(folder: Path) -> None:
    student, teacher = tokenizers.load(str(folder / "llama")), tokenizers.load(str(folder / "qwen3"))
    for name, count in (("data", 400), ("held_out", 60)):
        path = folder / f"{name}.jsonl"
        _write_text(path, count)
        prepare([path], folder / name, student, teacher)
        prepare([path], folder / f"{name}_of_several", student, {"qwen": teacher, "own": student})
    build(student, teacher).save(folder / "projection.safetensors")
    build(student, student).save(folder / "own_projection.safetensors")


def _write_text(path: Path, count: int) -> None:
    texts = [prompt + answer for prompt, answer in toy.sums(count, seed=count)] + SENTENCES[: count // 40]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
