"""Alignment and loss of TRL's GOLD and ours in one run: which texts are cut right, speed by length, cost by rows.

    pip install transformers==5.24.0 accelerate datasets && pip install --no-deps trl==1.16.0
    python tests/benchmarks/bench_peers.py [--part alignment loss] [--json] [--tokenizers FOLDER] [--repeats N]

The oracle cuts a text wherever a token ends on both sides, by the bytes of the tokens in the two vocabularies; texts of
which these are not the bytes are left out. Texts are those of tests/awkward_text.py and pieces of Python's
documentation. Times are CPU-seconds, both in turns, the least and the median of all rounds; "with tokens" is from the
text to chunks. Python's garbage collector is off meanwhile, as in `timeit`: a full collection looks at every object of
the process, which takes six times as long as TRL's alignment of the longest text that happens to set it off. Tokenizers
are those of tests/fetch_test_tokenizers.py that are `tokenizer.json` files; for the loss, `--of-models`.

The loss is measured forward and backward on the same float32 logits, of a text whose chunks are known (TRL finds them
once more, in a thousandth of the time): GOLD of both (TRL's with JSD, ours with KL), ULD of both, P-KL of ours. Peak
memory is that above the logits and their gradient, each in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from types import SimpleNamespace
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # read when the tokenizers library starts its threads
CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

import torch  # noqa: E402
from tokenizers import Tokenizer as Library  # noqa: E402

from nemo_xtoken import losses, projection, tokenizers  # noqa: E402
from nemo_xtoken.alignment import align  # noqa: E402
from nemo_xtoken.config import LossConfig  # noqa: E402
from nemo_xtoken.tokenizers import Tokenizer  # noqa: E402
from nemo_xtoken.types import ChunkRows, DistillBatch, Encoding  # noqa: E402
from tests.awkward_text import TEXTS  # noqa: E402
from tests.benchmarks.bench_losses import peak_mib  # noqa: E402

PROSE = "\n\n".join(topics.values())
PIECES = [*filter(None, TEXTS), *(PROSE[start : start + 2000] for start in range(0, 200_000, 2000))]
LENGTHS = (4_000, 16_000, 64_000, 256_000)
PAIRS = (("smollm2", "deepseek_v3"), ("smollm2", "gemma3"))
LOSS_PAIR, LOSS_ROWS = ("llama3_1", "qwen3"), (16, 32, 64)

Ends = list[tuple[int, int]]
Row = dict[str, str | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("alignment", "loss"), default=["alignment", "loss"])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tokenizers", type=Path, default=CHECKOUT / ".cache" / "tokenizers", metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {"trl": version("trl"), "exact": [], "speed": [], "loss": []}
    if "loss" in arguments.part:
        folders = [arguments.tokenizers / name for name in LOSS_PAIR]
        rows["loss"] = [row for count in LOSS_ROWS for row in Losses(folders, count).costs(arguments.repeats)]
    for names in PAIRS if "alignment" in arguments.part else ():
        paths = [arguments.tokenizers / f"{name}.json" for name in names]
        exact, speed = both(" / ".join(names), paths, arguments.repeats)
        rows["exact"] += exact
        rows["speed"] += speed
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"TRL {rows['trl']}")
    for row in (*rows["exact"], *rows["speed"], *rows["loss"]):
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def both(pair: str, paths: list[Path], repeats: int) -> tuple[list[Row], list[Row]]:
    """Texts that are cut right, and speeds, of both on one pair of tokenizers."""
    ours = [tokenizers.load(str(path)) for path in paths]
    theirs = [Library.from_file(str(path)) for path in paths]
    exact = {"texts": 0, "ours": 0, "trl": 0, "trl_refuses": 0}
    for text in PIECES:
        sides = [each.encode(text) for each in ours]
        if any(side.decode(each.ids.tolist()) != text for side, each in zip(ours, sides, strict=True)):
            continue
        right = oracle(ours, sides)
        exact["texts"] += 1
        exact["ours"] += our_ends(*sides) == right
        try:
            exact["trl"] += trl_ends(theirs, text) == right
        except Exception:  # whatever it raises, the text is not aligned
            exact["trl_refuses"] += 1
    counted: Row = {"pair": pair, **exact}
    return [counted], [] if exact["trl_refuses"] == exact["texts"] else list(speeds(pair, ours, theirs, repeats))


def oracle(sides: list[Tokenizer], encodings: list[Encoding]) -> Ends:
    """How many tokens of both sides end at or before each byte where one of both does."""
    by_byte: list[dict[int, int]] = []
    for side, encoding in zip(sides, encodings, strict=True):
        ends = accumulate(len(side.token_bytes(token_id)) for token_id in encoding.ids.tolist())
        by_byte.append({end: number for number, end in enumerate(ends, start=1)})
    return [(by_byte[0][end], by_byte[1][end]) for end in sorted(by_byte[0].keys() & by_byte[1].keys())]


def our_ends(student: Encoding, teacher: Encoding) -> Ends:
    """The last token of each chunk on both sides, exclusive."""
    chunks = align(student, teacher)
    return list(zip(chunks.student_end.tolist(), chunks.teacher_end.tolist(), strict=True))


def trl_offsets(sides: list[Library], text: str) -> list[Any]:
    """TRL's byte offsets of both sides."""
    from trl.experimental.utils import encode_with_byte_offsets  # pyright: ignore[reportMissingImports]

    return [encode_with_byte_offsets(side, [text])[0][1] for side in sides]


def trl_groups(offsets: list[Any]) -> tuple[list[list[int]], list[list[int]]]:
    """TRL's groups of tokens, of both sides."""
    from trl.experimental.gold.gold_trainer import ULDLoss  # pyright: ignore[reportMissingImports]

    return ULDLoss._align_by_byte_offsets(*offsets)


def trl_ends(sides: list[Library], text: str) -> Ends:
    """As `our_ends`, of TRL."""
    groups = trl_groups(trl_offsets(sides, text))
    return [(student[-1] + 1, teacher[-1] + 1) for student, teacher in zip(*groups, strict=True)]


def speeds(pair: str, ours: list[Tokenizer], theirs: list[Library], repeats: int) -> Iterator[Row]:
    """Student tokens per CPU-second by length, fastest and median round; it is linear if this does not fall."""
    for length in LENGTHS:
        text = PROSE[:length]
        sides, offsets = [each.encode(text) for each in ours], trl_offsets(theirs, text)
        timed: dict[str, Callable[[], object]] = {
            "ours": lambda sides=sides: align(*sides),
            "trl": lambda offsets=offsets: trl_groups(offsets),
            "ours_with_tokens": lambda text=text: align(*(each.encode(text) for each in ours)),
            "trl_with_tokens": lambda text=text: trl_groups(trl_offsets(theirs, text)),
        }
        row: Row = {"pair": pair, "tokens": len(sides[0])}
        for name, seconds in cpu_seconds(timed, repeats).items():
            row[f"{name}_M_tokens_s"] = round(len(sides[0]) / min(seconds) / 1e6, 3)
            row[f"{name}_median"] = round(len(sides[0]) / median(seconds) / 1e6, 3)
        yield row


def cpu_seconds(
    timed: Mapping[str, Callable[[], object]], repeats: int, before: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """CPU-seconds of each, in turns, a round after the other; `before` is called before each and not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    gc.disable()
    for _ in range(repeats):
        gc.collect()
        for name, function in timed.items():
            before()
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    gc.enable()
    return seconds


class Losses:
    """Logits of both sides for the first student tokens of a text, and what TRL and ours need beside them."""

    def __init__(self, folders: list[Path], rows: int) -> None:
        paths = [folder / "tokenizer.json" for folder in folders]
        self.ours = [tokenizers.load(str(path)) for path in paths]
        self.theirs = [Library.from_file(str(path)) for path in paths]
        sides = [each.encode(PROSE[: 20 * rows]) for each in self.ours]
        self.chunks = [end for end in our_ends(*sides) if end[0] <= rows]
        self.ids = [
            torch.from_numpy(side.ids[:end].astype("int64")) for side, end in zip(sides, self.chunks[-1], strict=True)
        ]
        self.spans = [
            torch.tensor([[*zip(side.starts[:end].tolist(), side.ends[:end].tolist(), strict=True)]])
            for side, end in zip(sides, self.chunks[-1], strict=True)
        ]
        generator = torch.Generator().manual_seed(0)
        self.logits = [
            torch.randn(len(ids), each.vocab_size, generator=generator)
            for ids, each in zip(self.ids, self.ours, strict=True)
        ]
        self.logits[0].requires_grad_()

    def batch(self) -> DistillBatch:
        """The chunks as predictor rows; the first token has no predictor."""
        ends = torch.tensor(self.chunks)
        starts, ends = ends[:-1] - 1, ends[1:] - 1
        student, teacher = (ids[None] for ids in self.ids)
        at = [torch.arange(ids.shape[1])[None] for ids in (student, teacher)]
        return DistillBatch(
            student_tokens=student,
            student_position_ids=at[0],
            student_labels=student.roll(-1),
            student_loss_mask=torch.ones(student.shape),
            teacher_tokens=teacher,
            teacher_position_ids=at[1],
            teacher_labels=teacher.roll(-1),
            chunks=ChunkRows(
                student_start=starts[:, 0],
                student_end=ends[:, 0],
                teacher_start=starts[:, 1],
                teacher_end=ends[:, 1],
                mask=torch.ones(len(starts)).bool(),
            ),
        )

    def runs(self) -> dict[str, Callable[[], object]]:
        """Forward and backward of each loss."""
        student, teacher = self.ours
        matrix, batch = projection.build(student, teacher), self.batch()

        def ours(function: Any, config: LossConfig) -> Callable[[], object]:
            return lambda: function(*self.logits, batch, matrix, config).numerator.backward()

        def trl(hybrid: bool) -> Callable[[], object]:
            from trl.experimental.gold.gold_trainer import ULDLoss  # pyright: ignore[reportMissingImports]

            loss = ULDLoss(trl_settings(hybrid), *self.theirs)
            ids = [side[None] for side in self.ids]
            inputs = (*ids, *ids, *self.spans)
            return lambda: loss(*(logits[None] for logits in self.logits), *inputs).backward()

        return {
            "gold, trl": trl(hybrid=True),
            "gold, ours": ours(losses.gold, LossConfig(mode="gold")),
            "uld, trl": trl(hybrid=False),
            "uld, ours": ours(losses.uld, LossConfig(mode="uld")),
            "p_kl, ours": ours(losses.projected_kl, LossConfig()),
            "p_kl of 8192, ours": ours(losses.projected_kl, LossConfig(teacher_top_k=8192)),
        }

    def drop_gradient(self) -> None:
        """Nothing is added to a gradient of the run before."""
        self.logits[0].grad = None

    def costs(self, repeats: int) -> Iterator[Row]:
        """CPU-seconds, the least and the median of all rounds, and peak MiB."""
        runs = self.runs()
        gradient = self.logits[0].numel() * 4 / 2**20
        ctypes.CDLL(None).malloc_trim(0)  # what building W has freed would hide what a loss takes
        peaks = {name: peak_mib(run) - gradient for name, run in runs.items()}
        seconds = cpu_seconds(runs, repeats, before=self.drop_gradient)
        sizes: Row = {"rows": len(self.logits[0]), "columns": " / ".join(f"{len(side[0])}" for side in self.logits)}
        for name in runs:
            least, middle = round(min(seconds[name]), 3), round(median(seconds[name]), 3)
            yield sizes | {"loss": name, "cpu_s": least, "median": middle, "peak_mib": round(peaks[name])}


def trl_settings(hybrid: bool) -> SimpleNamespace:
    """GOLDConfig's own defaults, of what its loss reads."""
    return SimpleNamespace(
        beta=0.5,
        use_extended_uld=True,
        uld_token_merge_strategy="observed",
        uld_use_hybrid_loss=hybrid,
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=True,
        uld_skip_teacher_eos=True,
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
