"""Tiny Hugging Face models with random weights and real tokenizers, and data for both."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
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


def make_all(folder: Path) -> None:
    """Under `folder`: models with tokenizers, prepared data `data` and `held_out`, and W; also of several teachers.

    `llama` and, with tied embeddings, `tied` are students, `qwen3` and `qwen2` teachers.
    """
    text = [prompt + answer for prompt, answer in toy.sums(400, seed=1)] + SENTENCES[:5]
    _save_tokenizer(folder / "llama", text, vocab_size=330, split_digits=False)
    _save_tokenizer(folder / "qwen3", text, vocab_size=300, split_digits=True)
    _save_tokenizer(folder / "qwen2", text, vocab_size=300, split_digits=True)
    shape: dict[str, Any] = {
        "max_position_embeddings": 64,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(1)
    student = {"vocab_size": 336, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    teacher = {"vocab_size": 304, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**student, **heads, **shape)).save_pretrained(folder / "llama")
    tied = {**shape, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**student, **heads, **tied)).save_pretrained(folder / "tied")
    _save_teacher(Qwen3ForCausalLM(Qwen3Config(**teacher, **heads, **shape)), folder / "qwen3")
    del teacher["head_dim"]
    _save_teacher(Qwen2ForCausalLM(Qwen2Config(**teacher, **heads, **shape)), folder / "qwen2")
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
        texts = [prompt + answer for prompt, answer in toy.sums(count, seed=count)] + SENTENCES[: count // 40]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        prepare([path], folder / name, student, teacher)
        prepare([path], folder / f"{name}_of_several", student, {"qwen": teacher, "own": student})
    build(student, teacher).save(folder / "projection.safetensors")
    build(student, student).save(folder / "own_projection.safetensors")
