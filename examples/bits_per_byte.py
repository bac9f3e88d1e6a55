"""How well Hugging Face models predict a text, in bits per byte, which compares models of different tokenizers.

    python examples/bits_per_byte.py TEXT.jsonl MODEL_DIR... [--length 128]

A text is cut into windows of --length tokens of the model's own, as in training; the first token of each is not
predicted, and its bytes do not count.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer


def bits_per_byte(model_dir: Path, texts: list[str], length: int) -> float:
    """-sum of log2 p(token) over the bytes of these tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    nats, num_bytes = 0.0, 0
    for text in texts:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = encoding["input_ids"], encoding["offset_mapping"]
        for start in range(0, len(ids) - 1, length):
            window = torch.tensor([ids[start : start + length]])
            nats += nats_of(model, window)
            last = start + window.shape[1] - 1
            num_bytes += len(text[spans[start][1] : spans[last][1]].encode())
    return nats / math.log(2) / num_bytes


@torch.no_grad()
def nats_of(model: nn.Module, window: torch.Tensor) -> float:
    """Sum of the losses of all tokens of a window [1, length] but the first."""
    logits = model(window).logits[0, :-1]
    return float(nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))


def main() -> int:
    """One line per model."""
    parser = argparse.ArgumentParser(description="Bits per byte of Hugging Face models on a text.")
    parser.add_argument("text", type=Path, metavar="TEXT.jsonl")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL_DIR")
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in options.text.read_text(encoding="utf-8").splitlines()]
    for model_dir in options.models:
        print(f"{bits_per_byte(model_dir, texts, options.length):8.3f}  {model_dir}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
