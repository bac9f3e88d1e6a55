"""Bytes of a teacher's token, stored or sent, speed of reading a cache, and what top-k and draws miss of the teacher.

    python tests/benchmarks/bench_teacher_cache.py [--tokens N] [--json]

Reading is timed from the page cache, rows of random documents, in CPU-seconds. The error is that of the gradient at the
student's logits, |p' - p|₁ of the teacher's distribution a row, for Zipf-like rows of 50,000 tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from nemo_xtoken.parallel import HeadOptions
from nemo_xtoken.teachers.cache import CacheManifest, CacheReader, ShardFile, Storage, StoredHead
from nemo_xtoken.teachers.cache.rows import bytes_per_token, choose_top_k, draw, encode_hidden

WIDTH, VOCABULARY, DOCUMENT = 2560, 151936, 512
STORED = [Storage(), Storage(stored_as="fp8"), Storage(stored_as="top_k", count=64)]
STORED.append(Storage(stored_as="sampled", count=64))


def bytes_table() -> dict[str, float]:
    """Of one token of Qwen3-4B, whose logits in bf16 are the measure."""
    table = {"full logits, bf16": 2.0 * VOCABULARY, "top 8,192 logits, int32 and bf16": 6.0 * 8192}
    for storage in STORED:
        name = f"{storage.stored_as} {storage.count}" if storage.is_sparse else f"hidden states, {storage.stored_as}"
        table[name] = bytes_per_token(storage, WIDTH)
    return table


def reading_speed(stored_as: str, tokens: int) -> float:
    """Tokens per CPU-second of rows that lie in documents of DOCUMENT tokens."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        storage = Storage(stored_as=stored_as)  # type: ignore[arg-type]
        manifest = CacheManifest(
            teacher="", data="", hidden_size=WIDTH, vocab_size=8, storage=storage, shard_starts=(0, tokens // 2, tokens)
        )
        manifest.claim(directory)
        StoredHead(torch.zeros(8, WIDTH), HeadOptions()).save(directory)
        for number in range(2):
            ShardFile(directory, number).write(encode_hidden(torch.randn(tokens // 2, WIDTH), storage))
        reader = CacheReader(directory)
        documents = torch.randperm(tokens // DOCUMENT).split(8)
        rows = [(part[:, None] * DOCUMENT + torch.arange(DOCUMENT)).flatten() for part in documents]
        reader.hidden(rows[0])
        started = time.process_time()
        for row in rows:
            reader.hidden(row)
        return tokens / (time.process_time() - started)


def errors(counts: tuple[int, ...], rows: int = 32, vocabulary: int = 50_000) -> dict[str, float]:
    """Mean |p' - p|₁ of a row: top-k as the loss takes it, top-k alone normalised, one and 64 readings of draws."""
    generator = torch.Generator().manual_seed(1)
    ranks = torch.arange(1, vocabulary + 1).float().log()
    log = (torch.randn(rows, vocabulary, generator=generator) - 1.5 * ranks).log_softmax(-1)
    exact, found = log.exp(), dict[str, float]()
    for count in counts:
        kept = choose_top_k(log, torch.full((rows,), -1), count)
        top = torch.zeros_like(exact).scatter_(1, kept.ids, kept.log_probs.exp())
        rest = 1 - top.sum(-1, keepdim=True)
        spread = torch.where(top > 0, top, rest / (vocabulary - count))
        normalised = top / top.sum(-1, keepdim=True)
        drawn = torch.zeros(2, *exact.shape)
        for i in range(64):
            entries = draw(log, count, generator)
            share = torch.where(entries.ids >= 0, entries.log_probs.exp(), 0.0)
            once = torch.zeros_like(exact).scatter_add_(1, entries.ids.clamp_min(0), share)
            drawn[0] = once if i == 0 else drawn[0]
            drawn[1] += once / 64
        for name, p in (
            ("top_k", spread),
            ("top_k normalised", normalised),
            ("draws", drawn[0]),
            ("draws, mean of 64", drawn[1]),
        ):
            found[f"{name} {count}"] = float((p - exact).abs().sum(-1).mean())
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "bytes_per_token": bytes_table(),
        "read_tokens_per_cpu_second": {name: reading_speed(name, arguments.tokens) for name in ("bf16", "fp8")},
        "error": errors((16, 64, 256)),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for title, table in result.items():
        print(title)
        for name, value in table.items():
            print(f"  {name:36} {value:12,.4g}")


if __name__ == "__main__":
    main()
